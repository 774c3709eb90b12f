"""The compiled functions of training: the training step and the evaluation step.

Axis letters: B samples of a batch, b samples of a part of it, N tokens of a sample (context + 1).
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from sllm_jax.core.model import Model, dense_logits, init_params, nll_of
from sllm_jax.train.settings import TrainingSettings


class TrainState(struct.PyTreeNode):
    """The state that a step updates."""

    params: Any  # float32
    opt_state: Any
    step: Int[Array, ""]  # completed steps


def init_train_state(module: Any, settings: TrainingSettings) -> TrainState:
    """The state before the first step. Parameters are float32, whatever the dtype of `module`."""
    params = init_params(module.clone(dtype=jnp.dtype(jnp.float32)), settings.seed)
    return TrainState(params, optimizer(settings).init(params), jnp.int32(0))


def learning_rate(settings: TrainingSettings) -> optax.Schedule:
    """Linear warm-up, then cosine decay."""
    return _schedule(settings.learning_rate, settings.final_learning_rate, settings.warmup_steps, settings.steps)


def optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """AdamW with clipping by global norm; only matrices decay. Equal settings give the same object: one compilation."""
    peak, final = settings.learning_rate, settings.final_learning_rate
    return _optimizer(peak, final, settings.warmup_steps, settings.steps, settings.clip_norm, settings.weight_decay)


@lru_cache(maxsize=8)
def _optimizer(
    peak: float, final: float, warmup_steps: int, steps: int, clip_norm: float, weight_decay: float
) -> optax.GradientTransformation:
    def matrices(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    schedule = _schedule(peak, final, warmup_steps, steps)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=weight_decay, mask=matrices),
    )


def _schedule(peak: float, final: float, warmup_steps: int, steps: int) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps, final)


def mean_nll(model: Model, samples: Int[Array, "B N"]) -> Float[Array, ""]:
    """The mean negative log-likelihood, in nats, of all tokens of the samples except the first of each."""
    cast = jax.tree.map(lambda leaf: leaf.astype(model.dtype), model)  # float32 parameters to the computation dtype
    logits = jax.vmap(partial(dense_logits, cast))(samples[:, :-1])  # [B, N - 1, V]
    return jnp.mean(nll_of(logits, samples[:, 1:]))


@partial(jax.jit, static_argnames=("module", "chain", "parts"), donate_argnames="state")
def train_step(
    module: Any, chain: optax.GradientTransformation, state: TrainState, samples: Int[Array, "B N"], parts: int
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step on B samples, with gradients accumulated over `parts` parts.

    Returns the next state, and the loss (nats per token) and gradient norm. The given state is donated.
    """
    value_and_grad = jax.value_and_grad(lambda params, part: mean_nll(Model(module, params), part))

    def add(total: Any, part: Int[Array, "b N"]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(state.params, part)), None

    if parts == 1:
        loss, gradient = value_and_grad(state.params, samples)
    else:
        # Sum loss and gradient over the parts, then take the mean.
        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
        total, _ = jax.lax.scan(add, zero, samples.reshape(parts, -1, samples.shape[1]))  # [parts, b, N]
        loss, gradient = jax.tree.map(lambda leaf: leaf / parts, total)
    updates, opt_state = chain.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = TrainState(params, opt_state, state.step + 1)
    return after, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}


@jax.jit
def eval_step(model: Model, samples: Int[Array, "B N"]) -> Float[Array, ""]:
    """`mean_nll` as a compiled function."""
    return mean_nll(model, samples)
