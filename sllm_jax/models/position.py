"""Rotary position embeddings (RoPE): the frequencies of each kind, and the rotation of queries and keys.

Positions come from the caller and are bounded.

Axis letters: T tokens, D head dimension, half = dim / 2 rotated pairs of dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sllm_jax.common.errors import SllmError
from sllm_jax.models.bounds import check_largest

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": (),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor"),
}
_FACTORS = ("short_factor", "long_factor")  # of longrope: lists with a divisor for each frequency
# Keys of rope_scaling or rope_parameters that every RoPE type may have.
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "finetuned")
# The options of a Hugging Face config that `Rope` reads.
OPTIONS = (
    "max_position_embeddings",
    "max_sequence_length",
    "original_max_position_embeddings",
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "partial_rotary_factor",
)
_TOO_LARGE = 1e30
_STRIDE = 256  # positions are split into a multiple of this and a remainder


@dataclass(frozen=True)
class Rope:
    """RoPE of one model: which dimensions rotate, and how fast. Fields carry their Hugging Face names.

    `dim` is the number of rotated dimensions of a head (even); the rest of the head is unrotated. It is 0 for models
    without RoPE.
    """

    dim: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # YaRN and longrope: factor of the rotated dimensions of queries and of keys
    short_factor: tuple[float, ...] = ()  # longrope: divisors of the frequencies [dim / 2] up to the original context
    long_factor: tuple[float, ...] = ()  # and beyond it

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], head_dim: int) -> Rope:
        """Read `rope_parameters` (transformers 5), or `rope_scaling` and `rope_theta`.

        Raises `SllmError` for a kind or an option that is not supported.
        """
        options = _rope_options(config)
        kind = options.get("rope_type", options.get("type", "default"))
        if not isinstance(kind, str) or kind not in ROPE_KINDS:
            raise SllmError(f"RoPE type {kind!r:.80} is not supported; supported are {', '.join(ROPE_KINDS)}")
        own = _own_options(kind, options)
        context = _context(config, kind)
        # Values in the options override those at the top level of the config, except for the original context, which
        # some models (Phi) have at the top level.
        original = (
            _positive(config, "original_max_position_embeddings")
            or _positive(options, "original_max_position_embeddings")
            or context
        )
        fraction = _positive(options, "partial_rotary_factor") or _positive(config, "partial_rotary_factor") or 1
        theta = _positive(options, "rope_theta") or _positive(config, "rope_theta") or 10_000.0
        dim = int(head_dim * fraction)
        if kind == "yarn":
            own = _complete_yarn(own, default_factor=context / original)
        if kind == "longrope":
            own = _complete_longrope(own, options, dim, context / original, original)
        if kind == "dynamic" and dim <= 2:
            raise SllmError(f"RoPE type 'dynamic' needs more than 2 rotated dimensions; got {dim}")
        return cls(
            dim=dim,
            max_position_embeddings=context,
            rope_theta=theta,
            rope_type=kind,
            original_max_position_embeddings=original,
            **own,
        )

    def frequencies(self, length: int) -> np.ndarray:
        """Angle per position of each rotated pair, float64 [dim / 2].

        `length`: the number of positions in use. Dynamic NTK depends on it beyond the trained context, and longrope
        beyond the original one.
        """
        theta = self.rope_theta
        # Dynamic NTK (arXiv 2309.00071, section 3.3), with the formula of transformers: theta grows with the length.
        if self.rope_type == "dynamic":
            stretch = self.factor * max(length, self.max_position_embeddings) / self.max_position_embeddings
            theta *= (stretch - (self.factor - 1)) ** (self.dim / (self.dim - 2))
        plain = theta ** (-np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
        match self.rope_type:
            case "linear":
                return plain / self.factor
            case "llama3":
                return plain * _llama3_factor(self, plain)
            case "yarn":
                kept = _yarn_fraction_kept(self)
                return plain * kept + plain / self.factor * (1 - kept)
            case "longrope":
                is_long = length > self.original_max_position_embeddings
                return plain / np.array(self.long_factor if is_long else self.short_factor)
        return plain


def _rope_options(config: Mapping[str, Any]) -> dict[str, Any]:
    options = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(options, Mapping) or any(isinstance(value, Mapping) for value in options.values()):
        raise SllmError(
            f"rope_scaling must be one object with a rope_type, the same for all layers; got {options!r:.80}"
        )
    return {name: value for name, value in options.items() if value is not None}


def check_frequencies(rope: Rope) -> None:
    """Raises `SllmError` unless all frequencies can be computed, and angles are finite."""
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            lengths = (rope.max_position_embeddings, rope.original_max_position_embeddings)
            is_finite = all((rope.frequencies(length) < _TOO_LARGE).all() for length in lengths)
    except (ArithmeticError, ValueError):  # overflow, division by zero, log of 0
        is_finite = False
    if not is_finite:
        names = ["rope_theta", *_REQUIRED[rope.rope_type], *_OPTIONAL.get(rope.rope_type, ())]
        options = ", ".join(f"{name} {getattr(rope, name)!r}" for name in names if hasattr(rope, name))
        raise SllmError(f"RoPE type {rope.rope_type!r} in config.json has no finite frequencies with {options}")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _TOO_LARGE


def _positive(config: Mapping[str, Any], name: str) -> Any:
    """The positive number under `name`, or None if absent; raises `SllmError` for another value."""
    value = config.get(name)
    if value is not None and (not is_number(value) or value <= 0):
        raise SllmError(f"{name} in config.json must be a positive number; got {value!r:.80}")
    return value


def _own_options(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of this kind; raises `SllmError` if a required one is missing, or one is unknown."""
    own = (*_REQUIRED[kind], *_OPTIONAL.get(kind, ()))
    lists = _FACTORS if kind == "longrope" else ()
    if missing := [name for name in _REQUIRED[kind] if not is_number(options.get(name)) or options[name] <= 0]:
        raise SllmError(
            f"RoPE type {kind!r} needs the positive number(s) {', '.join(missing)} in the config; got {options!r:.200}"
        )
    unknown = [name for name in options if name not in (*own, *lists, *_COMMON)]
    if unknown and kind != "default":  # some configs keep the options of a scaling that is off
        known = ", ".join((*own, *lists))
        raise SllmError(f"RoPE type {kind!r:.80} has no option {', '.join(unknown)}; known are {known}")
    chosen = {name: options[name] for name in own if name in options}
    for name, value in chosen.items():
        is_bool = name == "truncate"
        if isinstance(value, bool) != is_bool or (not is_bool and (not is_number(value) or value < 0)):
            expected = "true or false" if is_bool else "a non-negative number"
            raise SllmError(f"{name} of RoPE type {kind!r:.80} must be {expected}; got {value!r:.80}")
    if kind == "llama3" and (low := chosen["low_freq_factor"]) >= (high := chosen["high_freq_factor"]):
        raise SllmError(
            f"high_freq_factor of RoPE type 'llama3' must be greater than low_freq_factor; got {high} and {low}"
        )
    return chosen


def _context(config: Mapping[str, Any], kind: str) -> int:
    """The trained context, in tokens.

    Models fine-tuned with linear RoPE, such as Vicuna 16k, keep the original context as `max_position_embeddings` and
    have their own as `max_sequence_length`.
    """
    names = ("max_position_embeddings", "max_sequence_length") if kind == "linear" else ("max_position_embeddings",)
    values = {name: config[name] for name in names if config.get(name) is not None}
    for name, value in values.items():
        if type(value) is not int or value <= 0:
            raise SllmError(f"{name} in config.json must be a positive integer; got {value!r:.80}")
        check_largest(name, value)
    return max(values.values(), default=2048)


def _complete_yarn(options: Mapping[str, Any], default_factor: float) -> dict[str, Any]:
    """The fields of `Rope` for YaRN. `default_factor` is the ratio of the trained context to the original one."""
    factor = options.get("factor") or default_factor
    return {
        "factor": factor,
        "attention_factor": options.get("attention_factor") or _yarn_attention_factor(factor, options),
        "beta_fast": options.get("beta_fast") or 32.0,
        "beta_slow": options.get("beta_slow") or 1.0,
        "truncate": options.get("truncate", True),
    }


def _complete_longrope(
    own: Mapping[str, Any], options: Mapping[str, Any], dim: int, default_factor: float, original: int
) -> dict[str, Any]:
    """The fields of `Rope` for longrope (arXiv 2402.13753), with the attention factor of transformers.

    Raises `SllmError` unless both lists have a positive number for each of the dim / 2 frequencies.
    """
    for name in _FACTORS:
        values = options.get(name)
        if not isinstance(values, list | tuple) or len(values) != dim // 2:
            raise SllmError(
                f"{name} of RoPE type 'longrope' must be a list of {dim // 2} positive numbers; got {values!r:.80}"
            )
        if bad := [value for value in values if not is_number(value) or value <= 0]:
            raise SllmError(f"{name} of RoPE type 'longrope' must have positive numbers only; got {bad[0]!r:.80}")
    factor = own.get("factor") or default_factor
    by_default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return {
        "factor": factor,
        "attention_factor": own.get("attention_factor") or by_default,
        **{name: tuple(map(float, options[name])) for name in _FACTORS},
    }


def _llama3_factor(rope: Rope, frequencies: np.ndarray) -> np.ndarray:
    """Llama 3.1: high frequencies are kept, low ones are divided by `factor`, with a ramp in between."""
    rotations = rope.original_max_position_embeddings * frequencies / (2 * math.pi)  # within the original context
    ramp = np.clip((rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
    return ramp + (1 - ramp) / rope.factor


def _yarn_fraction_kept(rope: Rope) -> np.ndarray:
    """YaRN (arXiv 2309.00071, section 3.2): the fraction of each frequency that is not interpolated."""

    def pair_with(rotations: float) -> float:
        """The index of the pair that rotates this often within the original context."""
        positions_per_radian = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rope.dim * math.log(positions_per_radian) / (2 * math.log(rope.rope_theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    width = max(high - low, 0) or 0.001  # not 0, to avoid a division by it
    return 1 - np.clip((np.arange(rope.dim // 2) - low) / width, 0, 1)


def _yarn_attention_factor(factor: float, options: Mapping[str, Any]) -> float:
    """YaRN's factor of rotated queries and keys (section 3.4), with the scales of DeepSeek if the config has both."""

    def scaled(mscale: float) -> float:
        return 0.1 * mscale * math.log(max(factor, 1)) + 1

    if options.get("mscale") and options.get("mscale_all_dim"):
        return scaled(options["mscale"]) / scaled(options["mscale_all_dim"])
    return scaled(1)


class Angles(NamedTuple):
    """cos and sin [T, dim / 2] of the angle of each position and each rotated pair of dimensions."""

    cos: Float[Array, "T half"]
    sin: Float[Array, "T half"]

    def inverse(self) -> Angles:
        """The inverse rotation."""
        return Angles(self.cos, -self.sin)

    def for_queries(self, rope: Rope) -> Angles:
        """The same rotation, with the attention factors of queries and of keys.

        Both act on the rotated dimensions only, and queries alone get them.
        """
        scale = rope.attention_factor**2
        return self if scale == 1 else Angles(self.cos * scale, self.sin * scale)


@dataclass(frozen=True, eq=False)
class AngleTable:
    """Angles of the positions 0 ... limit - 1, from two small tables that the host computes in float64.

    Computed in float32, cos(position * frequency) is off by 6e-4 at position 4,096. Here a position is split into a
    multiple of 256 and a remainder, whose rotations are composed: the error is at most 2e-7 at every position.

    The tables hold cos + i sin as complex numbers. On the device, cosines and sines are separate arrays, because not
    every backend has complex numbers.
    """

    coarse: np.ndarray  # [limit / 256, half], complex64
    fine: np.ndarray  # [256, half], complex64

    @classmethod
    def of(cls, rope: Rope, length: int, limit: int) -> AngleTable:
        """`length`: the number of positions in use, as in `Rope.frequencies`; `limit`: the number in the table."""
        frequencies = rope.frequencies(length)
        starts = np.arange(0, limit + _STRIDE, _STRIDE)
        return cls(_rotations(starts, frequencies), _rotations(np.arange(_STRIDE), frequencies))

    def __call__(self, position: Int[Array, " T"]) -> Angles:
        """Angles of `position` [T], each in 0 ... limit - 1."""

        def look_up(table: np.ndarray, index: Int[Array, " T"]) -> Angles:
            return Angles(jnp.asarray(table.real)[index], jnp.asarray(table.imag)[index])

        multiple, remainder = position // _STRIDE, position % _STRIDE
        coarse, fine = look_up(self.coarse, multiple), look_up(self.fine, remainder)
        # cos(a + b) and sin(a + b)
        return Angles(coarse.cos * fine.cos - coarse.sin * fine.sin, coarse.sin * fine.cos + coarse.cos * fine.sin)


def _rotations(position: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """cos + i sin of the angle of each position and frequency."""
    return np.exp(1j * np.outer(position, frequencies)).astype(np.complex64)


def rotate(x: Float[Array, "*heads T D"], angles: Angles) -> Float[Array, "*heads T D"]:
    """Rotate the vectors of T tokens by their angles, in float32 (half-split pairs, Hugging Face's layout).

    Dimensions beyond the rotated ones (partial rotary embeddings) are unchanged.
    """
    half = angles.cos.shape[-1]
    if half == 0:
        return x
    with jax.named_scope("rope"):
        first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
        first, second = first.astype(jnp.float32), second.astype(jnp.float32)
        rotated = (first * angles.cos - second * angles.sin, second * angles.cos + first * angles.sin)
        return jnp.concatenate([*(part.astype(x.dtype) for part in rotated), rest], axis=-1)
