"""What a model is: the sizes and options that all families have, and reading them from a Hugging Face config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sllm_jax.alibi import Alibi
from sllm_jax.bounds import check_largest
from sllm_jax.errors import SllmError
from sllm_jax.position import Rope, is_number

SINKS = ("none", "zero", "learnable")  # how a model was trained to have somewhere to attend to (paper, section 3.3)
_REFUSED = (  # options of other architectures, which change what a model computes unless they are off
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok"),
    *("attn_logit_softcapping", "final_logit_softcapping", "attention_chunk_size", "sliding_window_pattern"),
    *("no_rope_layers", "no_rope_layer_interval", "kv_lora_rank", "q_lora_rank", "qk_layernorm", "use_qk_norm"),
    *("is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"),
)
_HEADS = re.compile(r".*(For(Sequence|Token)Classification|ForQuestionAnswering|ForMaskedLM|RewardModel)")
_BARE = re.compile(r"(?!.*(LMHead|RewardModel)).*Model")
_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "logit_scale")
_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the state, the programs and the loader ask of any family's config. Names are Hugging Face's."""

    model_type: ClassVar[str]  # of the family
    context_name: ClassVar[str] = "max_position_embeddings"  # where its Hugging Face configs have the trained context

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: Rope  # of dimension 0 where positions enter through `alibi` alone
    alibi: Alibi | None = None
    sliding_window: int | None = None  # how many tokens, itself included, a token sees besides the sinks
    softmax_scale: float | None = None  # None: one over the root of `head_dim`
    tie_word_embeddings: bool = False
    attention_sink: str = "none"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face `config.json`; raises `SllmError` for sizes that do not fit and options not supported."""
        raise NotImplementedError

    @classmethod
    def today(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """A Hugging Face config under the names that transformers has today."""
        return config

    @property
    def max_position_embeddings(self) -> int:
        """The trained context, in tokens."""
        return self.rope.max_position_embeddings

    @property
    def score_scale(self) -> float:
        """What products of queries and keys are multiplied by; YaRN makes both longer."""
        return self.rope.attention_factor**2 * (self.softmax_scale or self.head_dim**-0.5)


def refuse_unsupported(config: Mapping[str, Any], *names: str) -> None:
    """Raises `SllmError` for an option that changes the model in a way that no family here knows, or one of `names`."""
    switched_on = [name for name in (*_REFUSED, *names) if config.get(name) not in _OFF]
    switched_on += [name for name in _MULTIPLIERS if config.get(name) not in (None, 1)]
    if config.get("is_causal") is False:
        raise SllmError("config.json says is_causal = False: an embedder, which reads both ways and writes no text")
    for name in _architectures(config):
        if _HEADS.fullmatch(name):
            raise SllmError(
                f"config.json is of a {name:.80}: a classifier or reward model, which writes no text; "
                "give the language model that it was made from"
            )
    if switched_on:
        found = ", ".join(f"{name} = {config[name]!r:.80}" for name in switched_on)
        raise SllmError(f"config.json asks for what is not supported in {config.get('model_type')!r:.80}: {found}")


def bare_architecture(config: Mapping[str, Any]) -> str | None:
    """The class of a model that was saved without its head, such as `LlamaModel`; None for any other."""
    names = _architectures(config)
    return names[0] if names and all(_BARE.fullmatch(name) for name in names) else None


def _architectures(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def required_sizes(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The sizes without which there is no model; raises `SllmError` for any that is missing, not positive or huge."""
    bad = [name for name in names if type(config.get(name)) is not int or config[name] <= 0]
    if bad:
        found = ", ".join(f"{name} = {config.get(name)!r:.80}" for name in bad)
        raise SllmError(f"config.json needs a positive integer for each of {', '.join(bad)}; got {found}")
    return {name: check_largest(name, config[name]) for name in names}


def option(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """An option of the type of its default: a number of 0 or more, or a bool; raises `SllmError` for anything else."""
    value, kind = config.get(name), type(default)
    if value is None:
        return default
    is_of_kind = is_number(value) if kind is float else type(value) is kind
    if not is_of_kind or value < 0:
        expected = {bool: "true or false", int: "an integer of 0 or more", float: "a number of 0 or more"}[kind]
        raise SllmError(f"{name} in config.json must be {expected}; got {value!r:.80}")
    return check_largest(name, value) if kind is int else value


def options(config: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Several of `option`."""
    return {name: option(config, name, default) for name, default in defaults.items()}


def size(config: Mapping[str, Any], name: str, default: int) -> int:
    """A size that has a default; raises `SllmError` if it is not a positive integer."""
    return default if config.get(name) is None else required_sizes(config, name)[name]


def optional_size(config: Mapping[str, Any], name: str) -> int | None:
    """A positive integer, or None where there is none or 0."""
    return option(config, name, 0) or None


def head_size(hidden_size: int, heads: int) -> int:
    """The size of each of the heads that share the hidden size; raises `SllmError` if it is not a whole number."""
    if hidden_size % heads:
        raise SllmError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}")
    return hidden_size // heads


def grouped(heads: int, kv_heads: int) -> int:
    """`kv_heads`, if each serves as many of the query heads; raises `SllmError` if not."""
    if kv_heads == 0 or heads % kv_heads:
        raise SllmError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    return kv_heads


def rotary(config: Mapping[str, Any], head_dim: int, whole_heads: bool = True) -> Rope:
    """The config's RoPE; raises `SllmError` if it cannot turn heads of this size, or turns a part where all must be.

    What turns in YaRN is longer than the rest of a head, for which there is no one scale of the scores.
    """
    rope = Rope.from_hf(config, head_dim)
    whole_heads = whole_heads or rope.attention_factor != 1
    if rope.dim == 0 or rope.dim % 2 or rope.dim > head_dim or (whole_heads and rope.dim != head_dim):
        expected = "whole heads of even size" if whole_heads else "an even number of dimensions"
        kind = f"RoPE {rope.rope_type!r} of {config.get('model_type')!r:.80}"
        raise SllmError(f"{kind} turns {expected}; got {rope.dim} of {head_dim} dimensions of a head")
    return rope


def attention_sink(config: Mapping[str, Any]) -> str:
    """How the model was trained, one of `SINKS`.

    `none`: ordinary. `zero`: every softmax has one more logit, fixed at 0. `learnable`: a dedicated sink token stands
    before every text; the tokenizer puts it there, the model itself is ordinary.
    """
    name = config.get("attention_sink") or "none"
    if name not in SINKS:
        raise SllmError(f"attention_sink in config.json must be one of {', '.join(SINKS)}; got {name!r:.80}")
    return name
