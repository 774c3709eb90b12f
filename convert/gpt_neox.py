"""Checkpoints of `GPTNeoXForCausalLM`."""

from __future__ import annotations

from sllm_jax.convert.table import FUSED, Drop, Rule, Table, fused_linear, linear, norm

_LAYER = "gpt_neox.layers.{i}"

GPT_NEOX = Table(
    rules=(
        Rule("gpt_neox.embed_in.weight", ("embed_tokens/embedding",)),
        *norm(f"{_LAYER}.input_layernorm", "layers_{i}/input_layernorm"),
        *fused_linear(f"{_LAYER}.attention.query_key_value", "layers_{i}/self_attn", FUSED),
        *linear(f"{_LAYER}.attention.dense", "layers_{i}/self_attn/o_proj"),
        *norm(f"{_LAYER}.post_attention_layernorm", "layers_{i}/post_attention_layernorm"),
        *linear(f"{_LAYER}.mlp.dense_h_to_4h", "layers_{i}/mlp/up_proj"),
        *linear(f"{_LAYER}.mlp.dense_4h_to_h", "layers_{i}/mlp/down_proj"),
        *norm("gpt_neox.final_layer_norm", "norm"),
        *linear("embed_out", "lm_head"),
    ),
    drops=(
        Drop(f"{_LAYER}.attention.bias", "the causal mask"),
        Drop(f"{_LAYER}.attention.masked_bias", "the value of masked scores"),
        Drop(f"{_LAYER}.attention.rotary_emb.inv_freq", "frequencies follow from the config"),
        Drop("gpt_neox.rotary_emb.inv_freq", "frequencies follow from the config"),
        Drop("embed_out.weight", "tied to the embedding", copy_of="gpt_neox.embed_in.weight"),
    ),
    frame="gpt_neox.",
    aliases={"lm_head.weight": "embed_out.weight"},  # the module in transformers 5, as torch.save writes it
)
