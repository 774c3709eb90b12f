"""Configs whose layers differ: the window and the RoPE of each layer, and what is refused."""

import jax.numpy as jnp
import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.convert.families import module_for
from sllm_jax.core.kv_state import layer_sizes

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
}
GEMMA_2 = SIZES | {"model_type": "gemma2", "sliding_window": 9}
GEMMA_3 = SIZES | {"model_type": "gemma3_text", "sliding_window": 9}
SMOLLM3 = {name: size for name, size in SIZES.items() if name != "head_dim"} | {"model_type": "smollm3"}


def config_of(options):
    return module_for(options, jnp.float32).config


def windows(options):
    config = config_of(options)
    return [config.at_layer(i).sliding_window for i in range(8)]


def ropes(options):
    config = config_of(options)
    return [config.at_layer(i).rope for i in range(8)]


def test_which_layers_have_the_window():
    assert windows(GEMMA_2) == [9, None] * 4
    assert windows(GEMMA_3) == [9] * 5 + [None] + [9] * 2
    assert windows(GEMMA_3 | {"sliding_window_pattern": 3}) == [9, 9, None] * 2 + [9, 9]
    stated = ["full_attention"] + ["sliding_attention"] * 7
    assert windows(GEMMA_3 | {"layer_types": stated}) == [None] + [9] * 7
    assert windows(SMOLLM3) == [None] * 8
    assert windows(SMOLLM3 | {"use_sliding_window": True, "sliding_window": 9}) == ([None] * 3 + [9]) * 2


def test_layers_of_gemma_3_with_the_window_have_a_base_of_their_own_and_no_scaling():
    scaled = GEMMA_3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 500.0}
    found = ropes(scaled)
    assert [rope.rope_theta for rope in found] == [500.0] * 5 + [1_000_000.0] + [500.0] * 2
    assert [rope.factor for rope in found] == [1.0] * 5 + [8.0] + [1.0] * 2
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }
    assert ropes(GEMMA_3 | {"rope_parameters": nested}) == found
    assert ropes(scaled | {"rope_parameters": {"full_attention": None}}) == found


def test_layers_of_smollm3_without_rope():
    assert [rope.dim for rope in ropes(SMOLLM3)] == [8, 8, 8, 0] * 2
    assert [rope.dim for rope in ropes(SMOLLM3 | {"no_rope_layers": [0, 1] * 4})] == [0, 8] * 4


def test_what_a_layer_with_a_window_keeps():
    """Its window of 9 tokens, the current one included; in Gemma without sinks."""
    local, whole = config_of(GEMMA_3).at_layer(0), config_of(GEMMA_3).at_layer(5)
    assert layer_sizes(local, 2, 100) == layer_sizes(local, 2, 8) == (0, 8)
    assert layer_sizes(local, 2, 5) == (0, 5)
    assert layer_sizes(whole, 2, 100) == (2, 100)
    mistral = config_of(SIZES | {"model_type": "mistral", "sliding_window": 9})
    assert [layer_sizes(mistral, 2, recent) for recent in (100, 8, 5)] == [(2, 8), (2, 8), (2, 5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GEMMA_2 | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar in config.json must be positive; got 0"),
        (GEMMA_3 | {"sliding_window_pattern": 0}, "sliding_window_pattern in config.json must be positive; got 0"),
        (GEMMA_3 | {"sliding_window_pattern": "6"}, "sliding_window_pattern in config.json must be a non-neg"),
        (
            GEMMA_3 | {"rope_parameters": {"rope_theta": 5.0}},
            "must have full_attention and sliding_attention; got rope",
        ),
        (GEMMA_3 | {"rope_parameters": [1]}, "rope_parameters in config.json must be an object; got .1."),
        (GEMMA_3 | {"rope_parameters": {"full_attention": 3}}, "rope_scaling must be one object"),
        (GEMMA_3 | {"attn_logit_softcapping": 50.0}, "not supported in 'gemma3_text': attn_logit_softcapping = 50.0"),
        (
            GEMMA_3 | {"use_bidirectional_attention": True},
            "not supported in 'gemma3_text': use_bidirectional_attention",
        ),
        (GEMMA_3 | {"sliding_window": None}, "sliding_window in config.json must be a positive integer; got null"),
        (
            GEMMA_3 | {"sliding_window": None, "layer_types": ["sliding_attention"] * 8},
            "layer_types in config.json has sliding_attention, but no sliding_window is in use",
        ),
        (
            SMOLLM3 | {"sliding_window": 9, "layer_types": ["sliding_attention"] * 8},
            "layer_types in config.json has sliding_attention, but no sliding_window is in use",
        ),
        (
            GEMMA_3
            | {
                "rope_parameters": {"full_attention": {"rope_type": "default"}},
                "rope_scaling": {"rope_type": "linear"},
            },
            "has both rope_scaling and rope_parameters",
        ),
        (GEMMA_2 | {"layer_types": ["full_attention"] * 7}, "layer_types in config.json must be a list of 8"),
        (SMOLLM3 | {"no_rope_layers": [1] * 7}, "no_rope_layers in config.json must be a list of 8 of 0, 1; got"),
        (SMOLLM3 | {"no_rope_layers": [2] * 8}, "no_rope_layers in config.json must be a list of 8 of 0, 1; got"),
        (SMOLLM3 | {"no_rope_layer_interval": 0}, "no_rope_layer_interval in config.json must be positive; got 0"),
    ],
)
def test_what_cannot_be_run_is_refused(options, message):
    with pytest.raises(SllmError, match=message):
        module_for(options, jnp.float32)
