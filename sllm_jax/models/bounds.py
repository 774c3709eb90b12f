"""Bounds on the sizes in a config: what no model has is refused before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping

from sllm_jax.common.errors import SllmError

MAX_SIZE = 2**20  # of one part of a layer; the widest published model, Llama 3.1 405B, has 53,248
MAX_SIZES: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layers"), 2**10),  # Llama 3.1 405B has 126, DeepNet has 1,000
    "vocab_size": 2**24,  # published ones have at most some 2**18
    **dict.fromkeys(("max_position_embeddings", "max_sequence_length", "max_seq_len", "sliding_window"), 2**30),
}


def check_largest(name: str, value: int) -> int:
    """The size itself; raises `SllmError` if it is larger than that of any model."""
    largest = MAX_SIZES.get(name, MAX_SIZE)
    if value > largest:
        raise SllmError(f"{name} in config.json must be at most {largest}; got {value!r:.80}; fetch the file again")
    return value
