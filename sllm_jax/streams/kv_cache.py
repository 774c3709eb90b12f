"""The API of the paper's code, `enable_streaming_llm` and `StartRecentKVCache`, on states instead of lists."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sllm_jax.common.errors import SllmError
from sllm_jax.convert.families import supported
from sllm_jax.core import kv_state, repack
from sllm_jax.core.kv_state import KVState, check_sizes, over_streams
from sllm_jax.core.model import Model
from sllm_jax.models.config import ModelConfig


def enable_streaming_llm(model: Model, start_size: int, recent_size: int) -> StartRecentKVCache:
    """The cache for streaming with `model`: `start_size` sinks and `recent_size` recent tokens.

    Raises `SllmError` if the model family is not supported, or a size is invalid.
    """
    supported(model.config.model_type)
    return StartRecentKVCache(model.config, model.dtype, start_size, recent_size)


@dataclass(frozen=True)
class StartRecentKVCache:
    """Keeps the first `start_size` and the last `recent_size` tokens of a stream (paper, section 3.2).

    Every method takes the state of one or several streams and returns a new one; states are not modified. Positions are
    cache positions: 0 is the first sink, `filled` - 1 the most recent token.
    """

    config: ModelConfig
    dtype: Any
    start_size: int = 4
    recent_size: int = 512

    def __post_init__(self) -> None:
        """Raises `SllmError` for invalid sizes."""
        check_sizes(self.start_size, self.recent_size)

    @property
    def cache_size(self) -> int:
        """Tokens kept between steps. A step attends to one more, its own token."""
        return self.start_size + self.recent_size

    def init_state(self, streams: int | None = None) -> KVState:
        """An empty state of one stream, or of a batch of `streams`."""
        return kv_state.init_state(self.config, self.start_size, self.recent_size, self.dtype, streams)

    def __call__(self, state: KVState) -> KVState:
        """Keep the first `start_size` and last `recent_size` tokens of a state of any capacity.

        A layer with a sliding window keeps the tokens that it has. Raises `SllmError` if it lacks tokens that would
        become sinks, or that it would keep at this capacity as the other layers do.
        """
        if self.start_size > state.start_size:
            _check_sinks(state, self.config, True)
        _check_shared_rings(state, self.config, self.start_size, self.recent_size)
        return _first_and_last(state, self.start_size, self.recent_size, self.config)

    def evict_for_space(self, state: KVState, num_coming: int) -> KVState:
        """Drop the oldest tokens after the sinks until `num_coming` more fit into `cache_size`.

        If `num_coming` exceeds the window, all tokens but the sinks are dropped, and the new tokens evict each other
        one by one as they are read. The paper's code exceeds its cache in that case. Raises `SllmError` if `num_coming`
        is negative.
        """
        if num_coming < 0:
            raise SllmError(f"num_coming must be 0 or more; got {num_coming}")
        if (state.start_size, state.recent_size) != (self.start_size, self.recent_size):
            state = self(state)
        return _evict_for_space(state, jnp.int32(num_coming))

    def evict_range(self, state: KVState, start: int, end: int) -> KVState:
        """Drop the tokens at cache positions `start` to `end` - 1; later tokens move forward.

        Raises `SllmError` unless 0 <= start <= end <= `filled` for every stream, and if a layer with a sliding window
        may lack tokens that would become sinks.
        """
        filled = int(jnp.min(state.filled))
        if not 0 <= start <= end <= filled:
            raise SllmError(f"evict_range needs 0 <= start <= end <= {filled}, the tokens cached; got {start}, {end}")
        if start < min(end, state.start_size):
            _check_sinks(state, self.config, state.filled > end)
        return _evict_range(state, jnp.int32(start), jnp.int32(end), self.config)


def _check_sinks(state: KVState, config: ModelConfig, is_moving: Bool[Array, "*B"] | bool) -> None:
    """Raises `SllmError` if layers with a sliding window keep sinks, and lack tokens of a stream whose tokens move."""
    lacking = [is_moving & (ring.filled < state.filled) for ring in state.rings[1:]]
    if config.sinks_in_windows and any(bool(one.any()) for one in lacking):
        raise SllmError(
            "layers with a sliding window have evicted tokens that would become sinks; choose the sinks when the "
            "stream begins, and evict tokens after them"
        )


def _check_shared_rings(state: KVState, config: ModelConfig, start_size: int, recent_size: int) -> None:
    """Raises `SllmError` if layers would share a ring of the new capacity but have unequal numbers of tokens for it."""
    if len(state.rings) == 1:
        return
    kept: dict[tuple[int, int], list[Any]] = {(start_size, recent_size): [state.filled]}
    for i in range(config.num_hidden_layers):
        layer = config.at_layer(i)
        kept.setdefault(kv_state.layer_sizes(layer, start_size, recent_size), []).append(state.ring_of(layer).filled)
    for sizes, counts in kept.items():
        clipped = [jnp.minimum(count, sum(sizes)) for count in counts]
        if any(bool((one != clipped[0]).any()) for one in clipped):
            raise SllmError(
                "layers with a sliding window have evicted tokens that a cache of "
                f"{start_size} + {recent_size} tokens keeps in all layers; choose this size when the stream begins"
            )


@partial(jax.jit, static_argnums=(1, 2, 3))
def _first_and_last(state: KVState, start_size: int, recent_size: int, config: ModelConfig) -> KVState:
    return over_streams(lambda one: repack.first_and_last(one, start_size, recent_size, config), state)(state)


@jax.jit
def _evict_for_space(state: KVState, num_coming: Int[Array, ""]) -> KVState:
    return over_streams(lambda one: kv_state.evict_for_space(one, num_coming), state)(state)


@partial(jax.jit, static_argnums=3)
def _evict_range(state: KVState, start: Int[Array, ""], end: Int[Array, ""], config: ModelConfig) -> KVState:
    return over_streams(lambda one: repack.evict_range(one, start, end, config), state)(state)
