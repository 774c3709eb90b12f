"""Building blocks of the families: norms, attention, feed-forward networks, and the decoder around them.

Shapes: T tokens, E hidden size, H query heads, K key/value heads, D head dimension, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sllm_jax.models.activations import ACTIVATIONS
from sllm_jax.models.attend import Attend, LayerCache
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.linear import Linear, times

Heads = tuple[Array, Array, Array]  # queries [T, H, D], keys and values [T, K, D]


def rms_norm(epsilon: float, dtype: Any, name: str) -> nn.RMSNorm:
    """Root-mean-square norm over the last axis."""
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, param_dtype=dtype, name=name)


def layer_norm(epsilon: float, dtype: Any, name: str, use_bias: bool = True) -> nn.LayerNorm:
    """Layer norm over the last axis, with the two-pass variance."""
    return nn.LayerNorm(
        epsilon=epsilon, dtype=dtype, param_dtype=dtype, use_bias=use_bias, use_fast_variance=False, name=name
    )


class Attention(nn.Module):
    """Grouped-query attention between its four linear layers."""

    config: Any
    dtype: Any
    qkv_bias: bool = False
    output_bias: bool = False

    def prepare(self, q: Float[Array, "T HD"], k: Float[Array, "T KD"], v: Float[Array, "T KD"]) -> Heads:
        """Split queries, keys and values into heads. Families that do more to them override this."""
        q, k, v = (x.reshape(len(x), -1, self.config.head_dim) for x in (q, k, v))
        return q, k, v

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "T E"], cache: LayerCache, attend: Attend
    ) -> tuple[Float[Array, "T E"], LayerCache]:
        """The attention output of each token, and the layer's new cache."""
        config, dtype = self.config, self.dtype
        sizes = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        sizes["v_proj"] = config.num_key_value_heads
        with jax.named_scope("qkv"):
            projected = [
                Linear(count * config.head_dim, self.qkv_bias, dtype, name=name)(hidden)
                for name, count in sizes.items()
            ]
            heads = self.prepare(*projected)
        with jax.named_scope("attention"):
            cache, mixed = attend(cache, *heads)  # [T, H, D]
        output = Linear(config.hidden_size, self.output_bias, dtype, name="o_proj")
        return output(mixed.reshape(len(hidden), -1)), cache


class MLP(nn.Module):
    """Feed-forward network: up, an activation, down."""

    config: ModelConfig
    dtype: Any
    intermediate_size: int
    act: str
    use_bias: bool = False

    @nn.compact
    def __call__(self, hidden: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """Position-wise."""
        up = Linear(self.intermediate_size, self.use_bias, self.dtype, name="up_proj")(hidden)  # [T, F]
        down = Linear(self.config.hidden_size, self.use_bias, self.dtype, name="down_proj")
        return down(ACTIVATIONS[self.act](up))


Norm = Callable[[Float[Array, "T E"]], Float[Array, "T E"]]


class Layer(nn.Module):
    """A pre-norm transformer layer: attention and a feed-forward network with residuals, sequential or parallel."""

    config: Any
    dtype: Any

    def parts(self) -> tuple[Norm, nn.Module, Norm, nn.Module]:
        """The norm before attention, attention, the norm before the feed-forward network, and that network."""
        raise NotImplementedError

    def is_parallel(self) -> bool:
        """Whether the feed-forward network reads the layer's input instead of attention's residual output."""
        return False

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "T E"], cache: LayerCache, attend: Attend
    ) -> tuple[Float[Array, "T E"], LayerCache]:
        """The layer's output, and its new cache."""
        attention_norm, attention, mlp_norm, mlp = self.parts()
        mixed, cache = attention(attention_norm(hidden), cache, attend)
        after = hidden + mixed
        return after + mlp(mlp_norm(hidden if self.is_parallel() else after)), cache


class Decoder(nn.Module):
    """Token ids to logits. Attention and its caches come from the caller; a family gives the layers."""

    layer: ClassVar[type[Layer]]

    config: Any
    dtype: Any = jnp.float32
    remat: bool = False  # recompute each layer's activations in the backward pass instead of keeping them

    def norm(self) -> Norm:
        """The final norm."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self,
        token_ids: Int[Array, " T"],
        caches: Sequence[LayerCache],
        attends: Sequence[Attend],
        rows: Any = slice(None),
    ) -> tuple[Float[Array, "*t V"], tuple[LayerCache, ...]]:
        """Logits (float32) of the tokens that `rows` selects of the T, and the new caches. One of each per layer."""
        config, dtype = self.config, self.dtype
        embed = nn.Embed(config.vocab_size, config.hidden_size, dtype=dtype, param_dtype=dtype, name="embed_tokens")
        layer: Any = nn.remat(self.layer, static_argnums=(3,)) if self.remat else self.layer
        with jax.named_scope("embedding"):
            hidden, kept = embed(token_ids), []  # hidden [T, E]
        layers = range(config.num_hidden_layers)
        for i, cache, attend in zip(layers, caches, attends, strict=True):
            hidden, cache = layer(config, dtype, name=f"layers_{i}")(hidden, cache, attend)  # [T, E]
            kept.append(cache)
        hidden = self.norm()(hidden[rows])
        with jax.named_scope("head"):
            if config.tie_word_embeddings:
                return times(hidden, embed.embedding, jnp.float32), tuple(kept)
            return Linear(config.vocab_size, False, dtype, jnp.float32, name="lm_head")(hidden), tuple(kept)
