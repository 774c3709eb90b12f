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

    def __init__(self, config: ModelConfig, start_size: int, recent_size: int):
        self.config, self.start_size, self.cache_size = config, start_size, start_size + recent_size
        self.k: list[np.ndarray] = []
        self.v: list[np.ndarray] = []

    def step(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """One token: q [H, D], k and v [K, D] -> [H, D]."""
        self.k.append(k)
        self.v.append(v)
        rope, position = self.config.rope, np.arange(len(self.k))
        length = max(self.cache_size + 1, rope.max_position_embeddings)
        keys = np.repeat(rotate_at(np.stack(self.k), position, rope, length), len(q) // len(k), axis=1)  # [n, H, D]
        values = np.repeat(np.stack(self.v), len(q) // len(k), axis=1)
        query = rotate_at(q[None], position[-1:], rope, length)[0]
        scale = self.config.softmax_scale or 1 / np.sqrt(q.shape[-1])
        scores = np.einsum("hd,nhd->hn", query, keys) * rope.attention_factor**2 * scale
        if self.config.alibi is not None:
            scores += alibi_bias(self.config.family, *q.shape, len(self.k))
        if (window := self.config.sliding_window) is not None:
            scores[:, self.start_size : max(self.start_size, len(self.k) - window)] = -np.inf
        if self.config.attention_sink == "zero":  # one more key, with score 0 and value 0
            scores = np.concatenate([scores, np.zeros((len(q), 1))], axis=1)
            values = np.concatenate([values, np.zeros_like(values[:1])])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        self.evict_for_space(0)
        return np.einsum("hn,nhd->hd", weights / weights.sum(-1, keepdims=True), values)

    def evict_for_space(self, num_coming: int) -> None:
        """The oldest tokens that are not sinks go until num_coming more fit, or only sinks are left."""
        while len(self.k) + num_coming > self.cache_size and len(self.k) > self.start_size:
            del self.k[self.start_size], self.v[self.start_size]

    def evict_range(self, start: int, end: int) -> None:
        """As the original: [:start] + [end:]."""
        del self.k[start:end], self.v[start:end]


class ListModel:
    """A model with a `ListCache` a layer: logits token by token, the slow and obvious way."""

    def __init__(self, model, start_size: int, recent_size: int):
        self.model = model
        layers = range(model.config.num_hidden_layers)
        self.caches = [ListCache(model.config, start_size, recent_size) for _ in layers]

    def extend(self, token_ids) -> np.ndarray:
        """Logits [T, V] of T single steps."""
        steps = [_step(self.model, self.caches, int(token)) for token in token_ids]
        return np.array(steps)

    def evict_for_space(self, num_coming: int) -> None:
        """Every layer alike."""
        for cache in self.caches:
            cache.evict_for_space(num_coming)

    def resize(self, start_size: int, recent_size: int) -> None:
        """The first and the last tokens, in a list of another size."""
        for cache in self.caches:
            cache.start_size, cache.cache_size = start_size, start_size + recent_size
        self.evict_for_space(0)

    def evict_range(self, start: int, end: int) -> None:
        """Every layer alike."""
        for cache in self.caches:
            cache.evict_range(start, end)

    def __len__(self) -> int:
        return len(self.caches[0].k)


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
