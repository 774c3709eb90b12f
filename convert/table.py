"""Tables of checkpoint tensors: which tensor becomes which parameter, and how."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sllm_jax.common.tensor import Shape

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Transform:
    """A change of layout and its inverse. Both also take the model's config, for layouts that depend on sizes."""

    name: str
    forward: Callable[[np.ndarray, Any], Arrays]  # the checkpoint's tensor -> the rule's targets, in their order
    inverse: Callable[[Arrays, Any], np.ndarray]


IDENTITY = Transform("identity", lambda array, _: (array,), lambda arrays, _: arrays[0])


def _split_fused(array: np.ndarray, config: Any) -> Arrays:
    K, D, rest = config.num_key_value_heads, config.head_dim, array.shape[1:]  # noqa: N806
    grouped = array.reshape(K, -1, D, *rest)  # [K, G + 2, D, E], or without E
    parts = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    return tuple(part.reshape(-1, *rest) for part in parts)


def _join_fused(arrays: Arrays, config: Any) -> np.ndarray:
    K, D, rest = config.num_key_value_heads, config.head_dim, arrays[0].shape[1:]  # noqa: N806
    grouped = [array.reshape(K, -1, D, *rest) for array in arrays]  # [K, G or 1, D, E], or without E
    return np.concatenate(grouped, axis=1).reshape(-1, *rest)


def _split_stacked(array: np.ndarray, config: Any) -> Arrays:
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    return tuple(np.split(array, [queries, queries + keys]))


FUSED = Transform("fused by key/value head: its queries, its key, its value", _split_fused, _join_fused)
STACKED = Transform(
    "stacked: all queries, all keys, all values", _split_stacked, lambda arrays, _: np.concatenate(arrays)
)

HALVES = Transform(
    "stacked: the gate, the up projection",
    lambda array, _: tuple(np.split(array, 2)),
    lambda arrays, _: np.concatenate(arrays),
)


@dataclass(frozen=True)
class Rule:
    """The tensor `source` becomes the parameters `targets`; `{i}` stands for the number of the layer in all of them.

    A rule applies only if the model has all its targets, so one table serves models with and without biases, tied and
    untied.
    """

    source: str
    targets: tuple[str, ...]  # paths in the tree of parameters, such as "layers_{i}/self_attn/q_proj/weight"
    transform: Transform = IDENTITY

    def at_layer(self, i: int) -> Rule:
        """The rule for one layer."""
        named = (target.replace("{i}", str(i)) for target in self.targets)
        return Rule(self.source.replace("{i}", str(i)), tuple(named), self.transform)

    def source_shape(self, shapes: Mapping[str, Shape], config: Any) -> Shape:
        """The shape of the tensor, given the shapes of the parameters."""
        blanks = tuple(np.broadcast_to(np.False_, shapes[target]) for target in self.targets)
        return self.transform.inverse(blanks, config).shape


@dataclass(frozen=True)
class Drop:
    """The tensor `source` is ignored, for a stated reason; with `copy_of`, only if it equals that tensor."""

    source: str
    reason: str
    copy_of: str | None = None

    def matches(self, name: str) -> bool:
        """Whether the drop applies to the tensor `name`."""
        return re.fullmatch(re.escape(self.source).replace(r"\{i\}", r"\d+"), name) is not None


@dataclass(frozen=True)
class Table:
    """The layout of a family's checkpoints."""

    rules: tuple[Rule, ...]
    drops: tuple[Drop, ...] = ()
    frame: str = ""  # prefix of all tensors but the head; optional in a checkpoint
    aliases: Mapping[str, str] = field(default_factory=dict)  # alternative name -> name in the rules

    @property
    def tied(self) -> Drop | None:
        """The drop of the head that is tied to the embedding."""
        return next((drop for drop in self.drops if drop.copy_of is not None), None)

    def rules_for(self, shapes: Mapping[str, Shape], layers: int) -> dict[str, Rule]:
        """The rules that apply to a model with parameters of these `shapes`, by the name of the tensor."""
        spread = (rule.at_layer(i) for rule in self.rules for i in range(layers if "{i}" in rule.source else 1))
        return {rule.source: rule for rule in spread if all(target in shapes for target in rule.targets)}


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """The rules of a linear layer, with or without bias."""
    return Rule(f"{source}.weight", (f"{target}/weight",)), Rule(f"{source}.bias", (f"{target}/bias",))


def fused_linear(source: str, attention: str, transform: Transform) -> tuple[Rule, Rule]:
    """The rules of one linear layer for queries, keys and values, which become three under the path `attention`."""
    targets = [f"{attention}/{name}" for name in ("q_proj", "k_proj", "v_proj")]
    return (
        Rule(f"{source}.weight", tuple(f"{target}/weight" for target in targets), transform),
        Rule(f"{source}.bias", tuple(f"{target}/bias" for target in targets), transform),
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """The rules of a norm, with or without bias."""
    return Rule(f"{source}.weight", (f"{target}/scale",)), Rule(f"{source}.bias", (f"{target}/bias",))
