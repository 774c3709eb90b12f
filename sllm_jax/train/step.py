"""The compiled parts of training: one step, and the loss on text held back."""

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
    """All that a step changes."""

    params: Any  # float32
    opt_state: Any
    step: Int[Array, ""]  # how many are done


def init_train_state(module: Any, settings: TrainingSettings) -> TrainState:
    """Before the first step. `module` is that of the computation; the parameters are float32."""
    params = init_params(module.clone(dtype=jnp.dtype(jnp.float32)), settings.seed)
    return TrainState(params, optimizer(settings).init(params), jnp.int32(0))


def learning_rate(settings: TrainingSettings) -> optax.Schedule:
    """Linear warm-up, then half a cosine."""
    return _schedule(settings.learning_rate, settings.final_learning_rate, settings.warmup_steps, settings.steps)


def optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; only matrices decay. Equal settings give the same one, compiled once."""
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
    """Mean negative log-likelihood, in nats, of every token but the first of each sample, given those before it."""
    cast = jax.tree.map(lambda leaf: leaf.astype(model.dtype), model)
    logits = jax.vmap(partial(dense_logits, cast))(samples[:, :-1])
    return jnp.mean(nll_of(logits, samples[:, 1:]))


@partial(jax.jit, static_argnames=("module", "chain", "parts"), donate_argnames="state")
def train_step(
    module: Any, chain: optax.GradientTransformation, state: TrainState, samples: Int[Array, "B N"], parts: int
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step on B samples, computed in `parts` parts; the next state, and the loss and the norm of the gradient."""
    value_and_grad = jax.value_and_grad(lambda params, part: mean_nll(Model(module, params), part))

    def add(total: Any, part: Int[Array, "b N"]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(state.params, part)), None

    if parts == 1:
        loss, gradient = value_and_grad(state.params, samples)
    else:
        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
        total, _ = jax.lax.scan(add, zero, samples.reshape(parts, -1, samples.shape[1]))
        loss, gradient = jax.tree.map(lambda leaf: leaf / parts, total)
    updates, opt_state = chain.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = TrainState(params, opt_state, state.step + 1)
    return after, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}


@jax.jit
def eval_step(model: Model, samples: Int[Array, "B N"]) -> Float[Array, ""]:
    """`mean_nll`, compiled."""
    return mean_nll(model, samples)
