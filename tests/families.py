"""Tiny random models of PyTorch transformers, one for each option of each family; the sizes of a model all differ."""

from typing import NamedTuple

import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

VOCABULARY, LAYERS = 101, 2


class Family(NamedTuple):
    config: type
    model: type
    sizes: dict
    variants: dict  # name: options


LLAMA_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.4],
    "long_factor": [1.2, 1.9, 3.0, 4.5],
    "rope_theta": 500.0,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 500.0}
GEMMA_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "sliding_window": 9,
    "query_pre_attn_scalar": 12,
}
FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 3}
FALCON_RW = {"alibi": True, "bias": True, "parallel_attn": False, "multi_query": False}

FAMILIES = {
    "mistral": Family(
        MistralConfig,
        MistralForCausalLM,
        LLAMA_SIZES | {"head_dim": 10},
        {"sliding window": {"sliding_window": 9}, "no window": {"sliding_window": None}},
    ),
    "qwen2": Family(
        Qwen2Config,
        Qwen2ForCausalLM,
        LLAMA_SIZES,
        {
            "plain": {},
            "tied, epsilon": {"tie_word_embeddings": True, "rms_norm_eps": 0.1},
            "sliding window": SLIDING,
            "a window in one layer": SLIDING | {"max_window_layers": 1},
        },
    ),
    "qwen3": Family(
        Qwen3Config,
        Qwen3ForCausalLM,
        LLAMA_SIZES | {"head_dim": 10},
        {
            "plain": {},
            "biases": {"attention_bias": True},
            "sliding window, tied": SLIDING | {"tie_word_embeddings": True},
        },
    ),
    "smollm3": Family(
        SmolLM3Config,
        SmolLM3ForCausalLM,
        LLAMA_SIZES | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        {
            "every second layer without RoPE": {"no_rope_layer_interval": 2},
            "untied, biases": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
            "yarn": {"no_rope_layer_interval": 2, "rope_parameters": YARN},
            "a list, windows": {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 9},
        },
    ),
    "gemma2": Family(
        Gemma2Config,
        Gemma2ForCausalLM,
        GEMMA_SIZES,
        {
            "plain": {},
            "untied, biases, epsilon": {"tie_word_embeddings": False, "attention_bias": True, "rms_norm_eps": 0.1},
            "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            "low caps, another scale": {
                "attn_logit_softcapping": 1.5,
                "final_logit_softcapping": 5.0,
                "query_pre_attn_scalar": 30,
            },
        },
    ),
    "gemma3_text": Family(
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        GEMMA_SIZES,
        {
            "plain": {},
            "rope linear in global layers": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
            "a pattern, bases, cap": {
                "sliding_window_pattern": 2,
                "rope_theta": 300.0,
                "rope_local_base_freq": 50.0,
                "final_logit_softcapping": 5.0,
            },
            "no window, biases": {"layer_types": ["full_attention"] * 2, "attention_bias": True},
        },
    ),
    "phi3": Family(
        Phi3Config,
        Phi3ForCausalLM,
        LLAMA_SIZES | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        {
            "plain": {},
            "sliding window, tied": {"sliding_window": 9, "tie_word_embeddings": True},
            "longrope": {"original_max_position_embeddings": 16, "rope_parameters": LONGROPE},
            "longrope in a part of each head": {
                "hidden_size": 60,
                "original_max_position_embeddings": 16,
                "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.8},
            },
        },
    ),
    "gpt_neox": Family(
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        {"hidden_size": 48, "intermediate_size": 76, "num_attention_heads": 3, "max_position_embeddings": 64},
        {
            "parallel": {},
            "serial": {"use_parallel_residual": False},
            "no attention bias": {"attention_bias": False},
            "all rotates": {"rotary_pct": 1.0},
            "half rotates, tied": {"rotary_pct": 0.5, "tie_word_embeddings": True},
            "tanh gelu": {"hidden_act": "gelu_fast"},
            "theta, epsilon": {"rotary_emb_base": 500, "layer_norm_eps": 0.1},
            "rope linear": {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.25}},
            "rope dynamic": {"rope_parameters": DYNAMIC | {"partial_rotary_factor": 0.5}},
            "yarn in a part of each head": {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}},
        },
    ),
    "falcon": Family(
        FalconConfig,
        FalconForCausalLM,
        {"hidden_size": 48, "ffn_hidden_size": 76, "num_attention_heads": 6, "max_position_embeddings": 64},
        {
            "7B": {},
            "40B": FALCON_40B,
            "11B": FALCON_40B | {"num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
            "RW": FALCON_RW,
            "RW, heads a power of two": FALCON_RW | {"num_attention_heads": 4},
            "7B with ALiBi": {"alibi": True},
            "40B with ALiBi": FALCON_40B | {"alibi": True, "bias": True},
            "all heads their own": {"multi_query": False},
            "serial, multi-query": {"parallel_attn": False, "bias": True},
            "rope dynamic, tanh gelu, epsilon": {
                "rope_parameters": DYNAMIC,
                "activation": "gelu_new",
                "layer_norm_epsilon": 0.1,
            },
        },
    ),
    "mpt": Family(
        MptConfig,
        MptForCausalLM,
        {"d_model": 48, "n_heads": 6, "n_layers": LAYERS, "max_seq_len": 64, "expansion_ratio": 4},
        {
            "plain": {},
            "heads a power of two": {"n_heads": 4},
            "clipped": {"attn_config": {"clip_qkv": 0.7}},
            "another scale": {"attn_config": {"softmax_scale": 0.2}},
            "untied, epsilon": {"tie_word_embeddings": False, "layer_norm_epsilon": 0.1},
        },
    ),
}
CASES = [(name, variant) for name, family in FAMILIES.items() for variant in family.variants]
ONE_OF_EACH = [(name, next(iter(family.variants))) for name, family in FAMILIES.items()] + [("falcon", "RW")]


def small_config(name, variant, **changes):
    """A config of transformers."""
    family = FAMILIES[name]
    layers = {} if name == "mpt" else {"num_hidden_layers": LAYERS}
    return family.config(**{"vocab_size": VOCABULARY} | layers | family.sizes | family.variants[variant] | changes)


def random_model(name, variant, dtype=torch.float32, **changes):
    """A random model in PyTorch, drawn wide; biases and norms too are random, so that a lost one shows."""
    torch.manual_seed(0)
    model = FAMILIES[name].model(small_config(name, variant, **changes)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=1.0 if "embed" in path or "wte" in path else 0.2)
    return model.to(dtype)
