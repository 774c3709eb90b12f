"""Checkpoints of `Phi3ForCausalLM`."""

from __future__ import annotations

from sllm_jax.convert.table import HALVES, STACKED, Drop, Rule, Table, fused_linear, linear, norm

_LAYER = "model.layers.{i}"

PHI3 = Table(
    rules=(
        Rule("model.embed_tokens.weight", ("embed_tokens/embedding",)),
        *norm(f"{_LAYER}.input_layernorm", "layers_{i}/input_layernorm"),
        *fused_linear(f"{_LAYER}.self_attn.qkv_proj", "layers_{i}/self_attn", STACKED),
        *linear(f"{_LAYER}.self_attn.o_proj", "layers_{i}/self_attn/o_proj"),
        *norm(f"{_LAYER}.post_attention_layernorm", "layers_{i}/post_attention_layernorm"),
        Rule(
            f"{_LAYER}.mlp.gate_up_proj.weight",
            ("layers_{i}/mlp/gate_proj/weight", "layers_{i}/mlp/up_proj/weight"),
            HALVES,
        ),
        *linear(f"{_LAYER}.mlp.down_proj", "layers_{i}/mlp/down_proj"),
        *norm("model.norm", "norm"),
        *linear("lm_head", "lm_head"),
    ),
    drops=(
        Drop(f"{_LAYER}.self_attn.rotary_emb.inv_freq", "frequencies follow from the config"),
        Drop("lm_head.weight", "tied to the embedding", copy_of="model.embed_tokens.weight"),
    ),
    frame="model.",
)
