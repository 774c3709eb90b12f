"""What a model is: the sizes and options that all families share, read from a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from sllm_jax.common.errors import SllmError
from sllm_jax.models.alibi import Alibi
from sllm_jax.models.options import checked_kv_heads, head_size, option, options, required_sizes, size
from sllm_jax.models.position import OPTIONS as ROPE_OPTIONS
from sllm_jax.models.position import Rope, check_frequencies
from sllm_jax.models.sliding_window import sliding_windows
from sllm_jax.models.unsupported import refuse_unsupported

SINKS = ("none", "zero", "learnable")  # how a model was trained to have an attention sink (paper, section 3.3)
_SHARED_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_SHARED_DEFAULTS = {"tie_word_embeddings": False, "attention_sink": None, **dict.fromkeys(ROPE_OPTIONS)}


@dataclass(frozen=True)
class LayerKind:
    """What a layer has of its own, in models whose layers differ."""

    sliding_window: int | None
    rope: Rope


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The config of a model. Fields carry their Hugging Face names.

    Subclasses set the class variables and add fields for their own options. A field with the name of an option in
    `defaults` or `sizes` is read from that option; `position` and `own_options` compute all others.
    """

    family: ClassVar[str]  # the family's own name, a key of `FAMILIES` in sllm_jax.convert.families
    # model_type -> {option: default of transformers}, for every option that is understood.
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]]
    sizes: ClassVar[tuple[str, ...]] = ()  # further sizes without a default
    names: ClassVar[Mapping[str, str]] = {}  # our field name -> the family's name in config.json, where that differs

    model_type: str  # Hugging Face's
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: Rope  # dimension 0 where positions enter through `alibi` alone
    alibi: Alibi | None = None
    sliding_window: int | None = None  # window of all layers in tokens, the query's own included; None: unlimited
    layers: tuple[LayerKind, ...] = ()  # one for each layer, where they differ; then the layers' own fields count
    sinks_in_windows: bool = True  # whether layers with a sliding window keep the sinks beside it
    softmax_scale: float | None = None  # None: 1 / sqrt(head_dim)
    score_cap: float | None = None  # attention scores are softly capped: cap * tanh(score / cap)
    tie_word_embeddings: bool = False
    attention_sink: str = "none"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face `config.json`; raises `SllmError` for sizes that do not fit and options not supported."""
        config = cls.with_current_names(config)
        model_type = config["model_type"]
        defaults = {**_SHARED_DEFAULTS, **cls.defaults[model_type]}
        sizes = [*map(cls.name_of, _SHARED_SIZES), *cls.sizes]
        refuse_unsupported(config, {*sizes, *defaults})
        # Every option that the family understands, with its default where the config has none.
        values = {"model_type": model_type} | required_sizes(config, *sizes) | options(config, defaults)
        named_alike = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        shared_sizes = {name: values[cls.name_of(name)] for name in _SHARED_SIZES}
        heads = _heads(values, shared_sizes)
        sink = {"attention_sink": _attention_sink(values["attention_sink"])}
        position = cls.position(values, shared_sizes["num_attention_heads"], heads["head_dim"])
        window = {}
        if "sliding_window" in values:
            windows = sliding_windows(values, shared_sizes["num_hidden_layers"])
            window = cls.layer_kinds(values, windows, position["rope"])
        # Later ones win: fields that are computed override options of the same name.
        return cls(**named_alike | shared_sizes | heads | sink | window | position | cls.own_options(values))

    @classmethod
    def position(cls, config: Mapping[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
        """The fields `rope` and `alibi`; by default RoPE of whole heads. `config` has a value for each option."""
        return {"rope": rotary(config, head_dim)}

    @classmethod
    def layer_kinds(cls, config: Mapping[str, Any], windows: list[int | None], rope: Rope) -> dict[str, Any]:
        """The fields `sliding_window` and `layers`; by default all layers have the same RoPE."""
        if len(set(windows)) == 1:
            return {"sliding_window": windows[0]}
        return {"sliding_window": None, "layers": tuple(LayerKind(window, rope) for window in windows)}

    @classmethod
    def own_options(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are not simply options of the config. `config` has a value for each option."""
        return {}

    @classmethod
    def with_current_names(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """A Hugging Face config under the names that current transformers uses."""
        return config

    @classmethod
    def name_of(cls, field: str) -> str:
        """The name of a shared field in the family's Hugging Face configs."""
        return cls.names.get(field, field)

    def at_layer(self, i: int) -> ModelConfig:
        """The config of layer `i`: with the window and the RoPE that the layer has of its own."""
        if not self.layers:
            return self
        kind = self.layers[i]
        return replace(self, sliding_window=kind.sliding_window, rope=kind.rope, layers=())

    @property
    def max_position_embeddings(self) -> int:
        """The trained context, in tokens."""
        return self.rope.max_position_embeddings

    @property
    def score_scale(self) -> float:
        """The scale of attention scores."""
        return self.softmax_scale or self.head_dim**-0.5


def _heads(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """The number of key/value heads and the head dimension: options of some families, derived in the others."""
    hidden_size, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    # `config` has every option that the family understands. With a head_dim option, transformers rounds the default
    # down; families without one need an exact division.
    derived = hidden_size // heads if "head_dim" in config else head_size(hidden_size, heads)
    return {
        "num_key_value_heads": checked_kv_heads(heads, option(config, "num_key_value_heads", heads)),
        "head_dim": size(config, "head_dim", derived),
    }


def rotary(config: Mapping[str, Any], head_dim: int, whole_heads: bool = True) -> Rope:
    """The config's RoPE; raises `SllmError` if it does not fit heads of this size, or has no finite frequencies."""
    rope = Rope.from_hf(config, head_dim)
    if rope.dim == 0 or rope.dim % 2 or rope.dim > head_dim or (whole_heads and rope.dim != head_dim):
        expected = "whole heads of even size" if whole_heads else "an even number of dimensions"
        kind = f"RoPE {rope.rope_type!r} of {config.get('model_type')!r:.80}"
        raise SllmError(f"{kind} rotates {expected}; got {rope.dim} of {head_dim} dimensions of a head")
    check_frequencies(rope)
    return rope


def _attention_sink(name: Any) -> str:
    """How the model was trained, one of `SINKS`.

    `none`: ordinary. `zero`: every softmax has one more logit, fixed at 0. `learnable`: a dedicated sink token stands
    before every text; the tokenizer puts it there, the model itself is ordinary.
    """
    name = name or "none"
    if name not in SINKS:
        raise SllmError(f"attention_sink in config.json must be one of {', '.join(SINKS)}; got {name!r:.80}")
    return name
