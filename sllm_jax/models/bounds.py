"""Upper bounds on the sizes in a config, checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping

from sllm_jax.common.errors import SllmError

MAX_SIZE = 2**20  # a dimension of one layer; the widest published model, Llama 3.1 405B, has 53,248
MAX_SIZES: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layers"), 2**10),  # Llama 3.1 405B has 126, DeepNet has 1,000
    "vocab_size": 2**24,  # published models have up to about 2**18
    **dict.fromkeys(("max_position_embeddings", "max_sequence_length", "max_seq_len", "sliding_window"), 2**30),
}


def check_largest(name: str, value: int) -> int:
    """`value` itself; raises `SllmError` if it is above the bound for `name`."""
    largest = MAX_SIZES.get(name, MAX_SIZE)
    if value > largest:
        raise SllmError(f"{name} in config.json must be at most {largest}; got {value!r:.80}")
    return value
