"""The tensors of a GGUF file under the names and in the layout of Hugging Face, dequantized one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sllm_jax.common.foreign import foreign
from sllm_jax.common.gguf_file import Entry, read_headers
from sllm_jax.common.tensor import Tensor
from sllm_jax.convert.assemble import shapes_of
from sllm_jax.convert.gguf_config import architecture
from sllm_jax.convert.gguf_quants import dequantized, dtype_of
from sllm_jax.convert.gguf_rope import FREQUENCIES, LONGROPE
from sllm_jax.convert.table import FUSED, STACKED, Rule, Table

Layout = Callable[[np.ndarray], np.ndarray]


def tensors(path: Path, module: Any, table: Table) -> Iterator[Tensor]:
    """All tensors of the model in a GGUF file and its further parts; `table` is that of the module's family.

    Quantized tensors are float32 when read; float32, float16 and bfloat16 ones stay as they are and are memory-mapped.
    A type that cannot be dequantized is the tensor's `dtype`, and `assemble` refuses it. Raises `SllmError` for a file
    that is damaged.
    """
    headers = read_headers(path)
    arch = architecture(headers[0])
    rules = _rules(arch, module, table)
    read_with_config = {FREQUENCIES, *LONGROPE.values()} if arch == "phi3" else {FREQUENCIES}
    for name, entry in ((name, entry) for header in headers for name, entry in header.tensors.items()):
        if name in read_with_config and module.config.rope.dim:
            continue
        rule = rules.get(name)
        layout = _layout(arch, rule, module.config) if rule else None
        yield Tensor(rule.source if rule else name, entry.shape, dtype_of(entry), partial(_read, name, entry, layout))


def _read(name: str, entry: Entry, layout: Layout | None) -> np.ndarray:
    with foreign(f"the tensor {name:.200}", "fetch the file again"):
        array = dequantized(entry)
        return array if layout is None else layout(array)


def _rules(arch: str, module: Any, table: Table) -> dict[str, Rule]:
    """The rule of each tensor of the module, by its name in GGUF files."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    layers = module.config.num_hidden_layers
    names = get_tensor_name_map(next(one for one in MODEL_ARCH if MODEL_ARCH_NAMES[one] == arch), layers)
    found = {}
    for source, rule in table.rules_for(shapes_of(module), layers).items():
        if name := names.get_name(source, try_suffixes=(".weight", ".bias")):
            found[name] = rule
    return found


def _layout(arch: str, rule: Rule, config: Any) -> Layout | None:
    """How a tensor of a GGUF file is rearranged to that of Hugging Face; None where both are the same."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    projection = rule.targets[0].split("/")[-2]
    if arch in ("llama", "smollm3") and projection in heads:
        return partial(_halves, heads=heads[projection])
    if arch in ("gemma2", "gemma3") and rule.targets[0].endswith("/scale"):
        return lambda array: array - 1  # GGUF files have 1 + weight
    if rule.transform is FUSED:  # GGUF files of GPT-NeoX and Falcon have all queries, all keys, all values
        return lambda array: FUSED.inverse(STACKED.forward(array, config), config)
    return None


def _halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in half-split pairs; GGUF files of Llamas have the two rows of a pair side by side."""
    rest = array.shape[1:]
    return array.reshape(heads, -1, 2, *rest).swapaxes(1, 2).reshape(array.shape)
