"""Checkpoints of `Gemma2ForCausalLM` and `Gemma3ForCausalLM`."""

from __future__ import annotations

from sllm_jax.convert.table import Drop, Rule, Table, linear, norm

_LAYER = "model.layers.{i}"

GEMMA = Table(
    rules=(
        Rule("model.embed_tokens.weight", ("embed_tokens/embedding",)),
        *norm(f"{_LAYER}.input_layernorm", "layers_{i}/input_layernorm"),
        *linear(f"{_LAYER}.self_attn.q_proj", "layers_{i}/self_attn/q_proj"),
        *linear(f"{_LAYER}.self_attn.k_proj", "layers_{i}/self_attn/k_proj"),
        *linear(f"{_LAYER}.self_attn.v_proj", "layers_{i}/self_attn/v_proj"),
        *norm(f"{_LAYER}.self_attn.q_norm", "layers_{i}/self_attn/q_norm"),
        *norm(f"{_LAYER}.self_attn.k_norm", "layers_{i}/self_attn/k_norm"),
        *linear(f"{_LAYER}.self_attn.o_proj", "layers_{i}/self_attn/o_proj"),
        *norm(f"{_LAYER}.post_attention_layernorm", "layers_{i}/post_attention_layernorm"),
        *norm(f"{_LAYER}.pre_feedforward_layernorm", "layers_{i}/pre_feedforward_layernorm"),
        *linear(f"{_LAYER}.mlp.gate_proj", "layers_{i}/mlp/gate_proj"),
        *linear(f"{_LAYER}.mlp.up_proj", "layers_{i}/mlp/up_proj"),
        *linear(f"{_LAYER}.mlp.down_proj", "layers_{i}/mlp/down_proj"),
        *norm(f"{_LAYER}.post_feedforward_layernorm", "layers_{i}/post_feedforward_layernorm"),
        *norm("model.norm", "norm"),
        *linear("lm_head", "lm_head"),
    ),
    drops=(
        Drop(f"{_LAYER}.self_attn.rotary_emb.inv_freq", "frequencies follow from the config"),
        Drop("lm_head.weight", "tied to the embedding", copy_of="model.embed_tokens.weight"),
    ),
    frame="model.",
)
