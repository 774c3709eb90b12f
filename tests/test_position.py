"""Frequencies of every RoPE type against PyTorch transformers; angles against float64."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference import rotate_at
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sllm_jax.common.errors import SllmError
from sllm_jax.models.config import rotary
from sllm_jax.models.position import AngleTable, Rope, rotate

KINDS = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.5},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "yarn with options": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
    },
    "longrope": {
        "original_max_position_embeddings": 50,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.4],
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0, 9.0],
    },
    "longrope with attention_factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 16,
        "short_factor": [1.5] * 8,
        "long_factor": [2.5] * 8,
        "attention_factor": 1.3,
    },
    "yarn with attention_factor": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3},
}
CASES = [
    pytest.param({"rope_type": name} | options, spelling, id=f"{name}, {spelling}")
    for name, options in KINDS.items()
    for spelling in ("rope_parameters", "rope_scaling", "old rope_scaling")
]


def spelled(options: dict, spelling: str) -> dict:
    """A config with these RoPE options, theta 500, head size 16 and context 64."""
    config = {"max_position_embeddings": 64, "hidden_size": 48, "num_attention_heads": 3}
    if spelling == "rope_parameters":
        return config | {"rope_parameters": {"rope_theta": 500.0} | options}
    if spelling == "old rope_scaling":
        options = {("type" if name == "rope_type" else name): value for name, value in options.items()}
    return config | {"rope_theta": 500.0, "rope_scaling": options}


@pytest.mark.parametrize(("options", "spelling"), CASES)
@pytest.mark.parametrize("length", [40, 200])
def test_frequencies_equal_those_of_transformers(options, spelling, length):
    config = spelled(options, spelling)
    rope = Rope.from_hf(config, 16)
    theirs = LlamaRotaryEmbedding(LlamaConfig(**spelled(options, "rope_parameters")))
    cos, _ = theirs(torch.zeros(1, 1, 1), torch.arange(length)[None])
    ours = np.cos(np.outer(np.arange(length), rope.frequencies(length))) * rope.attention_factor
    np.testing.assert_allclose(ours, cos[0, :, :8].numpy(), atol=3e-5)


ODD = {
    "original beside the options, yarn": {
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "original beside the options, llama3": {
        "original_max_position_embeddings": 16,
        "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
    "left from a scaling that is off": {
        "rope_scaling": {"rope_type": "default", "attention_factor": 1.3, "factor": 2.0}
    },
    "both spellings": {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 5.0, "rope_theta": 500.0},
    },
    "yarn with zeros": {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 0, "beta_slow": 0, "mscale": 0}},
    "yarn without a factor": {"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 16}},
    "dynamic with an original": {
        "rope_scaling": {"type": "dynamic", "factor": 2, "original_max_position_embeddings": 16}
    },
    "none": {"rope_scaling": None},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_configs_are_read_as_transformers_reads_them(odd):
    config = spelled({}, "rope_scaling") | {"head_dim": 16} | odd
    rope = Rope.from_hf(config, 16)
    cos, _ = LlamaRotaryEmbedding(LlamaConfig(**config))(torch.zeros(1, 1, 1), torch.arange(200)[None])
    ours = np.cos(np.outer(np.arange(200), rope.frequencies(200))) * rope.attention_factor
    np.testing.assert_allclose(ours, cos[0, :, :8].numpy(), atol=3e-5)


def test_angles_are_exact_at_any_position():
    rope = Rope(dim=8, max_position_embeddings=64, rope_theta=500.0)
    position = np.array([0, 1, 255, 256, 4095, 100_000, 262_143])
    angles = AngleTable.of(rope, 64, 262_144)(jnp.array(position))
    exact = np.outer(position, rope.frequencies(64))
    np.testing.assert_allclose(angles.cos, np.cos(exact), atol=3e-7)
    np.testing.assert_allclose(angles.sin, np.sin(exact), atol=3e-7)


@pytest.mark.parametrize("dim", [6, 10])
def test_rotate_turns_the_rotary_dimensions_only(dim):
    rope = Rope(dim=dim, max_position_embeddings=64)
    x = np.random.default_rng(0).normal(size=(3, 5, 10))
    position = np.array([0, 1, 7, 30, 63])
    angles = AngleTable.of(rope, 64, 64)(jnp.array(position))
    ours = rotate(jnp.asarray(x, jnp.float32), angles)
    exact = rotate_at(x.swapaxes(0, 1), position, rope, 64).swapaxes(0, 1)
    np.testing.assert_allclose(ours, exact, atol=1e-6)
    np.testing.assert_allclose(rotate(ours, angles.inverse()), x, atol=1e-6)


LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_type": "llama4"}, "RoPE type 'llama4' is not supported; supported are default, linear"),
        (
            {"rope_type": "longrope"},
            "short_factor of RoPE type 'longrope' must be a list of 8 positive numbers; got None",
        ),
        (LONG | {"long_factor": [1.0] * 7}, "long_factor of RoPE type 'longrope' must be a list of 8 positive numbers"),
        (LONG | {"long_factor": [1.0] * 7 + [0]}, "long_factor of .* must have positive numbers only; got 0"),
        (LONG | {"short_mscale": 1.2}, "RoPE type 'longrope' has no option short_mscale; known are factor, attention_"),
        ({"type": "linear"}, "RoPE type 'linear' needs the positive number.s. factor"),
        ({"type": "llama3", "factor": 2.0}, "needs the positive number.s. low_freq_factor, high_freq_factor"),
        ({"type": "dynamic", "factor": 2.0, "alpha": 1000}, "RoPE type 'dynamic' has no option alpha"),
        (["linear"], "rope_scaling must be one object with a rope_type"),
        ({"full_attention": {"rope_type": "default"}}, "one object with a rope_type, the same for all layers"),
        ({"type": "yarn", "factor": "4"}, "factor of RoPE type 'yarn' must be a non-negative number; got '4'"),
        ({"type": "yarn", "factor": -4}, "factor of RoPE type 'yarn' must be a non-negative number; got -4"),
        ({"type": "yarn", "truncate": "no"}, "truncate of RoPE type 'yarn' must be true or false; got 'no'"),
        ({"type": "linear", "factor": 0}, "RoPE type 'linear' needs the positive number.s. factor"),
        ({"type": "linear", "factor": float("inf")}, "RoPE type 'linear' needs the positive number.s. factor"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(options, message):
    with pytest.raises(SllmError, match=message):
        Rope.from_hf({"rope_scaling": options}, 16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 4.0}},
            "RoPE type 'yarn' in config.json has no finite frequencies with rope_theta 1, factor 4.0",
        ),
        ({"rope_theta": 1e-300}, "RoPE type 'default' in config.json has no finite frequencies with rope_theta 1e-300"),
        (
            {"rope_scaling": {"type": "linear", "factor": 1e-300}},
            "RoPE type 'linear' in config.json has no finite frequencies",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_slow": 1e-310}},
            "RoPE type 'yarn' in config.json has no finite freq.*beta_slow 1e-310",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1e-300},
            "'dynamic' in config.json has no finite freq",
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 2.0, "high_freq_factor": 2.0}},
            "high_freq_factor of RoPE type 'llama3' must be greater than low_freq_factor; got 2.0 and 2.0",
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "high_freq_factor of RoPE type 'llama3' must be greater than low_freq_factor; got 1.0 and 4.0",
        ),
    ],
)
def test_options_that_give_no_finite_frequencies_are_refused(config, message):
    with pytest.raises(SllmError, match=message):
        rotary(config, 16)


def test_a_theta_of_1_is_read_as_transformers_reads_it():
    np.testing.assert_array_equal(rotary({"rope_theta": 1}, 16).frequencies(40), np.ones(8))
