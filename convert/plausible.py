"""A check that the weights of a checkpoint can fill the model of its config, before memory is allocated for it."""

from __future__ import annotations

import math
from pathlib import Path

from sllm_jax.common import orbax
from sllm_jax.common.errors import SllmError
from sllm_jax.common.gguf_file import is_gguf, read_headers
from sllm_jax.convert import sources
from sllm_jax.models.config import ModelConfig

_SLACK = 16  # smaller differences are reported tensor by tensor, in more detail
_SMALL = 2**26  # parameters; a model of this size is built in no time


def check_plausible(config: ModelConfig, source: Path) -> None:
    """Raises `SllmError` if the config has many times more parameters than the weights can hold."""
    asked, held = fewest_parameters(config), most_parameters(source)
    if asked > max(_SMALL, _SLACK * held):
        raise SllmError(
            f"{source}: the config describes a model of more than {asked:.1e} parameters "
            f"(vocab_size {config.vocab_size}, hidden_size {config.hidden_size}, {config.num_hidden_layers} layers), "
            f"but the weights hold at most {held:.1e}; use config and weights of the same checkpoint"
        )


def fewest_parameters(config: ModelConfig) -> int:
    """A lower bound on the parameters of any family: embedding and attention."""
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads)  # queries and output; keys and values
    attention = config.hidden_size * heads * config.head_dim
    return config.vocab_size * config.hidden_size + config.num_hidden_layers * attention


def most_parameters(source: Path) -> int:
    """An upper bound on the parameters of a checkpoint: one per byte, or the count that its format has."""
    if orbax.is_converted(source):
        return sum(math.prod(tensor.shape) for tensor in orbax.tensors(source))
    if is_gguf(source):
        return sum(math.prod(entry.shape) for header in read_headers(source) for entry in header.tensors.values())
    return sum(path.stat().st_size for path in sources.weight_files(source))
