"""Checkpoints of `MptForCausalLM`, and of `MPTForCausalLM` before it."""

from __future__ import annotations

from sllm_jax.convert.table import STACKED, Drop, Rule, Table, fused_linear, linear, norm

_LAYER = "transformer.blocks.{i}"

MPT = Table(
    rules=(
        Rule("transformer.wte.weight", ("embed_tokens/embedding",)),
        *norm(f"{_LAYER}.norm_1", "layers_{i}/input_layernorm"),
        *fused_linear(f"{_LAYER}.attn.Wqkv", "layers_{i}/self_attn", STACKED),
        *norm(f"{_LAYER}.attn.q_ln", "layers_{i}/self_attn/q_ln"),
        *norm(f"{_LAYER}.attn.k_ln", "layers_{i}/self_attn/k_ln"),
        *linear(f"{_LAYER}.attn.out_proj", "layers_{i}/self_attn/o_proj"),
        *norm(f"{_LAYER}.norm_2", "layers_{i}/post_attention_layernorm"),
        *linear(f"{_LAYER}.ffn.up_proj", "layers_{i}/mlp/up_proj"),
        *linear(f"{_LAYER}.ffn.down_proj", "layers_{i}/mlp/down_proj"),
        *norm("transformer.norm_f", "norm"),
        *linear("lm_head", "lm_head"),
    ),
    drops=(Drop("lm_head.weight", "tied to the embedding", copy_of="transformer.wte.weight"),),
    frame="transformer.",
)
