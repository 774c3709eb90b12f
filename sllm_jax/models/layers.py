"""Building blocks of the families: norms, attention, feed-forward networks, and the decoder around them.

Shapes: T tokens, E hidden size, H query heads, K key/value heads, D head dimension, F feed-forward size, V vocabulary,
*t selected tokens (no axis for an integer `rows`, one for a slice). Joined letters (HD) are a flattened axis.

`config` is annotated as Any where subclasses read fields of their family's own config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sllm_jax.models.activations import ACTIVATIONS
from sllm_jax.models.attend import Attend, LayerCache
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.linear import Linear, matmul_t

Heads = tuple[Array, Array, Array]  # queries [T, H, D], keys and values [T, K, D]


def rms_norm(epsilon: float, dtype: Any, name: str) -> nn.RMSNorm:
    """RMSNorm over the last axis."""
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, param_dtype=dtype, name=name)


def layer_norm(epsilon: float, dtype: Any, name: str, use_bias: bool = True) -> nn.LayerNorm:
    """LayerNorm over the last axis, with the two-pass variance."""
    return nn.LayerNorm(
        epsilon=epsilon, dtype=dtype, param_dtype=dtype, use_bias=use_bias, use_fast_variance=False, name=name
    )


class Attention(nn.Module):
    """Grouped-query attention with q, k, v and output projections. The attention itself is the caller's `attend`."""

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
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        with jax.named_scope("qkv"):
            q = Linear(q_size, self.qkv_bias, dtype, name="q_proj")(hidden)  # [T, HD]
            k = Linear(kv_size, self.qkv_bias, dtype, name="k_proj")(hidden)  # [T, KD]
            v = Linear(kv_size, self.qkv_bias, dtype, name="v_proj")(hidden)  # [T, KD]
            heads = self.prepare(q, k, v)
        with jax.named_scope("attention"):
            cache, output = attend(cache, *heads)  # [T, H, D]
        output_projection = Linear(config.hidden_size, self.output_bias, dtype, name="o_proj")
        return output_projection(output.reshape(len(hidden), -1)), cache


class MLP(nn.Module):
    """Feed-forward network: up, an activation, down."""

    config: ModelConfig
    dtype: Any
    intermediate_size: int
    act: str
    use_bias: bool = False

    @nn.compact
    def __call__(self, hidden: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """Applies the network to each token."""
        up = Linear(self.intermediate_size, self.use_bias, self.dtype, name="up_proj")(hidden)  # [T, F]
        down = Linear(self.config.hidden_size, self.use_bias, self.dtype, name="down_proj")
        return down(ACTIVATIONS[self.act](up))


Norm = Callable[[Float[Array, "T E"]], Float[Array, "T E"]]


class Parts(NamedTuple):
    """The modules of a layer."""

    attention_norm: Norm
    attention: nn.Module
    mlp_norm: Norm
    mlp: nn.Module
    # Norms of the outputs of attention and of the feed-forward network, before they join the residual.
    attention_output_norm: Norm = lambda hidden: hidden
    mlp_output_norm: Norm = lambda hidden: hidden


class Layer(nn.Module):
    """A pre-norm transformer layer: attention and a feed-forward network with residuals, sequential or parallel."""

    config: Any
    dtype: Any

    def parts(self) -> Parts:
        """The layer's modules."""
        raise NotImplementedError

    def is_parallel(self) -> bool:
        """Whether the feed-forward network reads the layer's input (parallel residual, as in GPT-J).

        Otherwise it reads the output of the attention residual.
        """
        return False

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "T E"], cache: LayerCache, attend: Attend
    ) -> tuple[Float[Array, "T E"], LayerCache]:
        """The layer's output, and its new cache."""
        parts = self.parts()
        output, cache = parts.attention(parts.attention_norm(hidden), cache, attend)
        residual = hidden + parts.attention_output_norm(output)
        output = parts.mlp(parts.mlp_norm(hidden if self.is_parallel() else residual))
        return residual + parts.mlp_output_norm(output), cache


class Decoder(nn.Module):
    """A decoder-only language model. Attention and its caches come from the caller; a family gives the layers."""

    layer: ClassVar[type[Layer]]

    config: Any
    dtype: Any = jnp.float32
    remat: bool = False  # recompute each layer's activations in the backward pass instead of keeping them

    def embedded(self, hidden: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """The input of the first layer, given the embeddings. Families that change it override this."""
        return hidden

    def norm(self) -> Norm:
        """The final norm."""
        raise NotImplementedError

    def capped(self, logits: Float[Array, "*t V"]) -> Float[Array, "*t V"]:
        """The logits, given those of the head. Families that change them override this."""
        return logits

    @nn.compact
    def __call__(
        self,
        token_ids: Int[Array, " T"],
        caches: Sequence[LayerCache],
        attends: Sequence[Attend],
        rows: Any = slice(None),
    ) -> tuple[Float[Array, "*t V"], tuple[LayerCache, ...]]:
        """Logits in float32, and the new caches. `caches` and `attends` have one entry per layer.

        `rows` is an index or a slice over the T tokens, to compute the projection to the vocabulary for these only.
        """
        config, dtype = self.config, self.dtype
        embed = nn.Embed(config.vocab_size, config.hidden_size, dtype=dtype, param_dtype=dtype, name="embed_tokens")
        # Argument 3 of a layer, counting self, is `attend`.
        layer: Any = nn.remat(self.layer, static_argnums=(3,)) if self.remat else self.layer
        with jax.named_scope("embedding"):
            hidden = self.embedded(embed(token_ids))  # [T, E]
        new_caches = []
        layers = range(config.num_hidden_layers)
        for i, cache, attend in zip(layers, caches, attends, strict=True):
            hidden, cache = layer(config, dtype, name=f"layers_{i}")(hidden, cache, attend)  # [T, E]
            new_caches.append(cache)
        hidden = self.norm()(hidden[rows])
        with jax.named_scope("head"):
            if config.tie_word_embeddings:
                logits = matmul_t(hidden, embed.embedding, jnp.float32)
            else:
                logits = Linear(config.vocab_size, False, dtype, jnp.float32, name="lm_head")(hidden)
            return self.capped(logits), tuple(new_caches)
