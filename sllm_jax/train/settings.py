"""The settings of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sllm_jax.common.errors import SllmError
from sllm_jax.convert.dtypes import as_dtype
from sllm_jax.convert.families import family_of
from sllm_jax.models.config import SINKS
from sllm_jax.models.options import required_sizes

DTYPES = ("float32", "bfloat16")  # no float16: gradients overflow it


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that the trained parameters depend on, besides the text.

    Runs with equal settings and equal text produce equal parameters.
    """

    config: Mapping[str, Any] = field(repr=False)  # config.json of the model, including the context
    steps: int = 1000
    batch_size: int = 16  # samples per step, one context each
    accumulate: int = 1  # gradient accumulation: parts of a batch, computed in sequence
    learning_rate: float = 3e-3  # peak
    warmup_steps: int = 100
    final_learning_rate: float = 0.0
    weight_decay: float = 0.1  # applied to matrices only
    clip_norm: float = 1.0
    dtype: str = "float32"  # dtype of the computation; parameters and optimizer state are float32
    remat: bool = False
    sink: str = "none"
    hold_back: int = 1  # documents kept for evaluation
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `SllmError` for invalid values."""
        if as_dtype(self.dtype).name not in DTYPES:
            raise SllmError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        required_sizes(self.config, family_of(self.config).config.name_of("max_position_embeddings"))
        if self.sink not in SINKS:
            raise SllmError(f"sink must be one of {', '.join(SINKS)}; got {self.sink!r}")
        if (in_config := self.config.get("attention_sink", self.sink)) != self.sink:
            raise SllmError(f"the config has attention_sink {in_config!r}, --sink is {self.sink!r}; make them equal")
        for name in ("steps", "batch_size", "accumulate", "learning_rate", "clip_norm", "hold_back"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "more than 0")
        for name in ("warmup_steps", "final_learning_rate", "weight_decay"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "final_learning_rate", "weight_decay", "clip_norm"):
            _require(name, getattr(self, name), math.isfinite(getattr(self, name)), "a finite number")
        _require("seed", self.seed, 0 <= self.seed < 2**31, f"from 0 to {2**31 - 1}")
        _require("warmup_steps", self.warmup_steps, self.warmup_steps < self.steps, f"below the {self.steps} steps")
        _require("batch_size", self.batch_size, self.batch_size % self.accumulate == 0, "a multiple of accumulate")

    @property
    def context(self) -> int:
        """The trained context: tokens per sample."""
        return self.config[family_of(self.config).config.name_of("max_position_embeddings")]

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON data."""
        return asdict(self) | {"config": dict(self.config)}

    def differences(self, written: Mapping[str, Any]) -> list[str]:
        """The settings that differ from the written ones, as `name: was ..., is ...`."""
        mine = self.as_json()
        config = {f"config.{name}" for name in {*mine["config"], *written.get("config", {})}}
        names = [entry.name for entry in fields(self) if entry.name != "config"] + sorted(config)
        pairs = [(name, _entry(written, name), _entry(mine, name)) for name in names]
        return [f"{name}: was {before!r}, is {now!r}" for name, before, now in pairs if before != now]


def _entry(settings: Mapping[str, Any], name: str) -> Any:
    _, dot, inner = name.partition(".")
    return settings.get("config", {}).get(inner) if dot else settings.get(name)


def _require(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise SllmError(f"{name.replace('_', '-')} must be {expected}; got {value}")
