"""The first line of the error for a checkpoint that does not fit its config: what it looks like."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sllm_jax.common.tensor import Shape
from sllm_jax.convert.names import stray_prefix
from sllm_jax.convert.table import Table

# Pattern in the names of unknown tensors -> description of the checkpoint.
_SIGNS: dict[str, str] = {
    r"\blora_[AB]\b|\.lora_embedding_": "a LoRA adapter; merge it into its base model first (PEFT: merge_and_unload)",
    r"\.(qweight|qzeros|scales|g_idx|absmax|quant_map|weight_scale(_inv)?|weight_packed)$": "quantized weights; give a "
    "float32, float16 or bfloat16 checkpoint",
    r"\.experts\.|\.block_sparse_moe\.": "a mixture of experts, which is not supported",
    r"^(score|classifier|v_head|value_head|reward_head)\.": "a reward model or classifier, which generates no text; "
    "give the language model that it was made from",
    r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|language_model)\.": "a model of text and images, "
    "which is not supported",
}
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def looks_like(
    found: Mapping[str, Shape], own: Callable[[str], str | None], table: Table, embedding: Shape, config: Any
) -> str | None:
    """A description of the checkpoint for the error message, or None.

    `found`: the shapes of its tensors, by name. `own` maps a name to the name in `table`, or None. `embedding`: the
    shape of the embedding according to the config.
    """
    unknown = [name for name in found if own(name) is None]
    for sign, what in _SIGNS.items():
        if any(re.search(sign, name) for name in unknown):
            return what
    if prefix := stray_prefix(unknown, lambda name: (its := own(name)) is not None and its not in found):
        return f"a checkpoint whose tensor names begin with {prefix!r:.80}; save it without this prefix"
    if len(unknown) == len(found):
        return f"another architecture than the {config.model_type!r} of config.json"
    layers = 1 + max((int(number[1]) for name in found if (number := _LAYER.search(name))), default=-1)
    if layers != config.num_hidden_layers:
        return f"a model of {layers} layers, or a part of one; config.json says {config.num_hidden_layers}"
    if table.tied is None:
        return None
    shape = found.get(str(table.tied.copy_of))
    if shape not in (None, embedding):
        return f"a model with an embedding of {shape} (tokens, size); config.json says {embedding}"
    if shape and table.tied.source not in found and not config.tie_word_embeddings:
        return "a model without its head, such as an embedding model; give a checkpoint with a head"
    return None


def summary(problems: Mapping[str, int], what: str | None) -> str:
    """One line: the number of problems of each kind, and what the checkpoint looks like."""
    count = sum(problems.values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in problems.items())
    tensors = f"{count} tensor{'s do' if count > 1 else ' does'} not match config.json ({kinds})"
    return tensors if what is None else f"{tensors}; this looks like {what}"
