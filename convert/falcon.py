"""Checkpoints of `FalconForCausalLM`, and of `RWForCausalLM` before it."""

from __future__ import annotations

from sllm_jax.convert.table import FUSED, Drop, Rule, Table, fused_linear, linear, norm

_LAYER = "transformer.h.{i}"

FALCON = Table(
    rules=(
        Rule("transformer.word_embeddings.weight", ("embed_tokens/embedding",)),
        *norm(f"{_LAYER}.input_layernorm", "layers_{i}/input_layernorm"),
        *norm(f"{_LAYER}.ln_attn", "layers_{i}/ln_attn"),
        *fused_linear(f"{_LAYER}.self_attention.query_key_value", "layers_{i}/self_attn", FUSED),
        *linear(f"{_LAYER}.self_attention.dense", "layers_{i}/self_attn/o_proj"),
        *norm(f"{_LAYER}.post_attention_layernorm", "layers_{i}/post_attention_layernorm"),
        *norm(f"{_LAYER}.ln_mlp", "layers_{i}/ln_mlp"),
        *linear(f"{_LAYER}.mlp.dense_h_to_4h", "layers_{i}/mlp/up_proj"),
        *linear(f"{_LAYER}.mlp.dense_4h_to_h", "layers_{i}/mlp/down_proj"),
        *norm("transformer.ln_f", "norm"),
        *linear("lm_head", "lm_head"),
    ),
    drops=(
        Drop(f"{_LAYER}.self_attention.rotary.inv_freq", "frequencies follow from the config"),
        Drop(f"{_LAYER}.self_attention.maybe_rotary.inv_freq", "frequencies follow from the config"),
        Drop(f"{_LAYER}.self_attention.rotary_emb.inv_freq", "frequencies follow from the config"),
        Drop("transformer.rotary_emb.inv_freq", "frequencies follow from the config"),
        Drop("lm_head.weight", "tied to the embedding", copy_of="transformer.word_embeddings.weight"),
    ),
    frame="transformer.",
)
