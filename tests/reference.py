"""The paper's list-based cache as an `attend` for the same modules: keys are rotated by their index at every step."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.experimental import io_callback
from transformers.models.falcon.modeling_falcon import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from sllm_jax.core import model
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.position import Rope

dense_logits = jax.jit(model.dense_logits)  # one program: op by op it takes four times as long


def rotate_at(x: np.ndarray, position: np.ndarray, rope: Rope, length: int) -> np.ndarray:
    """Rotate x [n, ..., D] by position [n], in float64."""
    angle = np.multiply.outer(position, rope.frequencies(length))
    angle = angle.reshape(len(position), *[1] * (x.ndim - 2), -1)
    half = rope.dim // 2
    first, second = x[..., :half], x[..., half : rope.dim]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., rope.dim :]], -1)


@lru_cache
def alibi_bias(family: str, heads: int, head_dim: int, length: int) -> np.ndarray:
    """What PyTorch transformers adds to the scores of `length` keys, [H, n], without the share of the last one.

    A softmax does not see that share, unless it has a logit fixed at zero.
    """
    if family == "falcon":
        bias = build_alibi_tensor(torch.ones(1, length, dtype=torch.long), heads, torch.float32)[:, 0]
        bias = bias.double().numpy() / np.sqrt(head_dim)
    else:
        bias = build_mpt_alibi_tensor(heads, length)[:, 0].double().numpy()
    return bias - bias[:, -1:]


class ListCache:
    """One layer, one stream. After each step the oldest token that is not a sink goes, if there are too many."""

    def __init__(self, config: ModelConfig, start_size: int, recent_size: int, stream_size: int):
        self.config, self.start_size, self.cache_size = config, start_size, start_size + recent_size
        self.stream_size = stream_size  # tokens that the stream keeps, of which this layer may keep fewer
        self.k: list[np.ndarray] = []
        self.v: list[np.ndarray] = []
        self.numbers: list[int] = []  # of the tokens, from the start of the stream
        self.seen = 0

    def step(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """One token: q [H, D], k and v [K, D] -> [H, D]."""
        self.k.append(k)
        self.v.append(v)
        self.numbers.append(self.seen)
        self.seen += 1
        rope, position = self.config.rope, np.arange(len(self.k))
        length = self.stream_size + 1
        keys = np.repeat(rotate_at(np.stack(self.k), position, rope, length), len(q) // len(k), axis=1)  # [n, H, D]
        values = np.repeat(np.stack(self.v), len(q) // len(k), axis=1)
        query = rotate_at(q[None], position[-1:], rope, length)[0]
        query[:, : rope.dim] *= rope.attention_factor**2
        scale = self.config.softmax_scale or 1 / np.sqrt(q.shape[-1])
        scores = np.einsum("hd,nhd->hn", query, keys) * scale
        if (cap := self.config.score_cap) is not None:
            scores = cap * np.tanh(scores / cap)
        if self.config.alibi is not None:
            scores += alibi_bias(self.config.family, *q.shape, len(self.k))
        if self.config.attention_sink == "zero":  # one more key, with score 0 and value 0
            scores = np.concatenate([scores, np.zeros((len(q), 1))], axis=1)
            values = np.concatenate([values, np.zeros_like(values[:1])])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        self.trim()
        return np.einsum("hn,nhd->hd", weights / weights.sum(-1, keepdims=True), values)

    def trim(self) -> None:
        """The oldest tokens that are not sinks go until the rest fits."""
        while len(self.k) > self.cache_size:
            self.drop(self.start_size)

    def drop(self, i: int) -> None:
        """The token at position i goes."""
        del self.k[i], self.v[i], self.numbers[i]

    def keep(self, numbers: set[int]) -> None:
        """All but these tokens go."""
        for i in reversed(range(len(self.numbers))):
            if self.numbers[i] not in numbers:
                self.drop(i)


def list_cache(config: ModelConfig, start_size: int, recent_size: int) -> ListCache:
    """The list of a layer with this config. With a sliding window, a token sees itself and the window - 1 before it."""
    sizes = start_size, recent_size
    if (window := config.sliding_window) is not None:
        sizes = start_size if config.sinks_in_windows else 0, min(recent_size, window - 1)
    return ListCache(config, *sizes, start_size + recent_size)


class ListModel:
    """A model with a `ListCache` a layer: logits token by token, the slow and obvious way.

    `numbers` are the tokens of the stream. A layer that keeps fewer drops those that the stream drops.
    """

    def __init__(self, model, start_size: int, recent_size: int):
        self.model, self.start_size, self.cache_size = model, start_size, start_size + recent_size
        layers = range(model.config.num_hidden_layers)
        self.caches = [list_cache(model.config.at_layer(i), start_size, recent_size) for i in layers]
        self.numbers: list[int] = []
        self.seen = 0

    def extend(self, token_ids) -> np.ndarray:
        """Logits [T, V] of T single steps."""
        return np.array([self._step(int(token)) for token in token_ids])

    def evict_for_space(self, num_coming: int) -> None:
        """The oldest tokens that are not sinks go until num_coming more fit, or only sinks are left."""
        before = len(self.numbers)
        while len(self.numbers) + num_coming > self.cache_size and len(self.numbers) > self.start_size:
            del self.numbers[self.start_size]
        if len(self.numbers) < before:
            for cache in self.caches:
                cache.keep(set(self.numbers[self.start_size - cache.start_size :]))

    def resize(self, start_size: int, recent_size: int) -> None:
        """The first and the last tokens, in a list of another size."""
        old = self.caches
        self.start_size, self.cache_size = start_size, start_size + recent_size
        while len(self.numbers) > self.cache_size:
            del self.numbers[self.start_size]
        self.caches = [list_cache(one.config, start_size, recent_size) for one in old]
        for cache, one in zip(self.caches, old, strict=True):
            cache.k, cache.v, cache.numbers, cache.seen = one.k, one.v, one.numbers, one.seen
            cache.trim()

    def evict_range(self, start: int, end: int) -> None:
        """As the original: [:start] + [end:]."""
        dropped = set(self.numbers[start:end])
        del self.numbers[start:end]
        for cache in self.caches:
            cache.keep(set(cache.numbers) - dropped)

    def has_lost_sinks(self) -> bool:
        """Whether a layer with sinks lacks tokens that would become sinks if there were more of them."""
        caches = [cache for cache in self.caches if cache.config.sinks_in_windows]
        return any(len(cache.numbers) < len(self.numbers) for cache in caches)

    def would_differ(self, start_size: int, recent_size: int) -> bool:
        """Whether layers of one capacity after a `resize` would hold unequal numbers of tokens."""
        found = {(start_size, recent_size): {min(len(self.numbers), start_size + recent_size)}}
        for cache in self.caches:
            new = list_cache(cache.config, start_size, recent_size)
            capacity = (new.start_size, new.cache_size - new.start_size)
            found.setdefault(capacity, set()).add(min(len(cache.numbers), new.cache_size))
        return any(len(counts) > 1 for counts in found.values())

    def __len__(self) -> int:
        return len(self.numbers)

    def _step(self, token: int) -> np.ndarray:
        self.numbers.append(self.seen)
        self.seen += 1
        if len(self.numbers) > self.cache_size:
            del self.numbers[self.start_size]
        return _step(self.model, self.caches, token)


def _step(model, caches: list[ListCache], token: int) -> np.ndarray:
    _current[:] = caches
    return np.asarray(_compiled_step(model, jnp.int32(token)))


_current: list[ListCache] = []  # the caches that the compiled step calls back to


@jax.jit
def _compiled_step(model, token):
    layers = iter(range(model.config.num_hidden_layers))

    def attend(cache, q, k, v):
        def on_host(layer, q, k, v):
            return (
                _current[int(layer)].step(*(np.asarray(x[0], np.float64) for x in (q, k, v)))[None].astype(np.float32)
            )

        shape = jax.ShapeDtypeStruct(q.shape, jnp.float32)
        return cache, io_callback(on_host, shape, next(layers), q, k, v, ordered=True)

    empty = ((jnp.zeros(0), jnp.zeros(0)),) * model.config.num_hidden_layers
    attends = (attend,) * model.config.num_hidden_layers
    return model.module.apply({"params": model.params}, token[None], empty, attends, 0)[0]
