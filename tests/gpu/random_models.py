"""The timed models: a 7B Llama with random weights, or a very small one for a dry run."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from sllm_jax.benchmark import limit
from sllm_jax.benchmark import run as benchmark
from sllm_jax.benchmark.random_weights import random_model
from sllm_jax.benchmark.run import BenchmarkSettings
from sllm_jax.core.model import Model

SEVEN_B = Path(__file__).parents[1] / "data/llama-7b.json"
SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 4096,
}


def seven_b(tiny: bool, int8: bool = False, layers: int | None = None) -> Model:
    """In bfloat16; `layers`: only as many."""
    return random_model(config(tiny, layers), jnp.bfloat16, int8)


def config(tiny: bool, layers: int | None = None) -> dict[str, Any]:
    """Its config.json."""
    chosen = json.loads(SEVEN_B.read_text()) | (SMALL if tiny else {})
    return chosen | ({"num_hidden_layers": layers} if layers else {})


def settings(tiny: bool, cache_size: int = 2048) -> BenchmarkSettings:
    """4 sinks and a window; 5 rounds."""
    if tiny:
        make_probes_small()
        return BenchmarkSettings(4, cache_size // 64 - 4, rounds=1)
    return BenchmarkSettings(4, cache_size - 4, rounds=5)


def make_probes_small() -> None:
    """4 MB, for a dry run."""
    limit.PROBE_BYTES = benchmark.PROBE_BYTES = 2**22
