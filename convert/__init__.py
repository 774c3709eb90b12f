"""Checkpoints: Hugging Face folders to parameters, to a converted checkpoint, and back to Hugging Face folders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sllm_jax.convert import orbax, sources
from sllm_jax.convert.assemble import assemble, identity_table, is_tied
from sllm_jax.convert.dtypes import as_dtype
from sllm_jax.convert.export import write_safetensors
from sllm_jax.convert.falcon import FALCON
from sllm_jax.convert.gpt_neox import GPT_NEOX
from sllm_jax.convert.llama import LLAMA
from sllm_jax.convert.mpt import MPT
from sllm_jax.convert.plausible import check_plausible
from sllm_jax.convert.table import Table
from sllm_jax.errors import SllmError
from sllm_jax.files import copy_companions, existing_folder, load_config, new_folder, write_json
from sllm_jax.int8 import INT8, check_weights, is_quantized
from sllm_jax.model import Model
from sllm_jax.models import module_for
from sllm_jax.models.config import bare_architecture
from sllm_jax.progress import Progress, silent

__all__ = ["TABLES", "convert", "load_params", "read_config", "to_huggingface"]

_WEIGHTS = "weights"  # a key of the config.json of a converted checkpoint: what they are, if not floats
TABLES: dict[str, Table] = {"llama": LLAMA, "gpt_neox": GPT_NEOX, "falcon": FALCON, "mpt": MPT}  # by family


def load_params(folder: Path | str, module: Any, progress: Progress = silent, weights: str | None = None) -> Any:
    """The parameters of `module`, in its dtype, from a Hugging Face folder or a converted checkpoint.

    One tensor is read, cast and put on the default device at a time. `weights` "int8": see `sllm_jax.int8`. Raises
    `SllmError` with all that is wrong.
    """
    folder = existing_folder(folder)

    def place(array: np.ndarray) -> jax.Array:
        return jax.device_put(array).block_until_ready()

    return _read(folder, module, as_dtype(module.dtype), place, progress, check_weights(weights))


def convert(
    source: Path | str, out: Path | str, dtype: Any = None, progress: Progress = silent, weights: str | None = None
) -> None:
    """Write the checkpoint in the folder `source` as a converted checkpoint: the new folder `out`, whole or not at all.

    `dtype` None keeps each tensor's own, so that nothing is lost; `weights` "int8" keeps those of linear layers as
    `sllm_jax.int8` says. Raises `SllmError` if `out` exists already, and for all that is wrong with the checkpoint.
    """
    source, int8 = existing_folder(source), check_weights(weights)
    with new_folder(Path(out)) as folder:
        hf_config, _, params = _read_folder(source, dtype, progress, int8)
        if is_quantized(params):
            hf_config = {**hf_config, _WEIGHTS: INT8}
        orbax.save(folder, params)
        _write_companions(folder, source, hf_config, params)


def to_huggingface(source: Path | str | Model, out: Path | str, dtype: Any = None, progress: Progress = silent) -> None:
    """Write a model, or the checkpoint in a folder, as the new folder `out` that `transformers` loads.

    It holds safetensors, the config and, from a folder, the tokenizer. `dtype` and errors as in `convert`.
    """
    source = source if isinstance(source, Model) else existing_folder(source)
    with new_folder(Path(out)) as folder:
        if isinstance(source, Model):
            hf_config, module, params = source.hf_config, source.module, source.params
            if not hf_config:
                raise SllmError("the model has no hf_config to write as config.json; give it one")
            if dtype is not None and not is_quantized(params):
                target = as_dtype(dtype)
                params = jax.tree.map(lambda array: np.asarray(array).astype(target), params)
        else:
            hf_config, module, params = _read_folder(source, dtype, progress)
        if is_quantized(params):
            raise SllmError("int8 weights cannot go to Hugging Face; take the checkpoint that they were made from")
        if module.config.attention_sink == "zero":
            raise SllmError("a model with attention_sink 'zero' cannot go to Hugging Face, which has no such softmax")
        write_safetensors(folder, params, TABLES[module.config.model_type], module)
        _write_companions(folder, source, module.config.today(hf_config), params)


def read_config(folder: Path, dtype: Any) -> tuple[dict[str, Any], Any]:
    """The `config.json` of a model's folder, and the module that it and the weights ask for.

    Where the config ties the head to the embedding, but the checkpoint has two matrices that differ (a fine-tuned
    head), the module is untied, with a warning, as in transformers. A tied model that was saved without its head loads
    with a warning: it may be an embedder. Raises `SllmError` for what is not supported.
    """
    hf_config = load_config(folder)
    module = module_for(hf_config, dtype)
    refuse_quantized(hf_config, folder)
    check_plausible(module.config, folder)
    if module.config.tie_word_embeddings and (bare := bare_architecture(hf_config)):
        warnings.warn(
            f"{folder}: config.json is of a {bare:.80}, saved without a head; the embedding serves as its head "
            "(tie_word_embeddings), but the text of an embedder makes no sense",
            stacklevel=3,
        )
    table = TABLES[module.config.model_type]
    ties = module.config.tie_word_embeddings and not orbax.is_converted(folder)
    if ties and not is_tied(sources.tensors(folder), table):
        warnings.warn(
            f"{folder}: config.json ties the head to the embedding, but the checkpoint has two matrices that differ; "
            "both are used (tie_word_embeddings is false in the config of this model)",
            stacklevel=3,
        )
        hf_config = hf_config | {"tie_word_embeddings": False}
        module = module_for(hf_config, dtype)
    return hf_config, module


def refuse_quantized(hf_config: Mapping[str, Any], folder: Path) -> None:
    """Raises `SllmError`, with the method, if the weights are quantized by somebody else's."""
    quantization = hf_config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        name = " ".join(str(method or "bitsandbytes").split())[:40]  # the first configs did not name theirs
        raise SllmError(f"{folder} holds quantized weights ({name}); give a float32, float16 or bfloat16 checkpoint")


def _read_folder(
    folder: Path, dtype: Any, progress: Progress, int8: bool = False
) -> tuple[Mapping[str, Any], Any, Any]:
    """Config, module and parameters (NumPy arrays, which take no memory on an accelerator) of a folder."""
    hf_config, module = read_config(folder, np.float32)
    params = _read(folder, module, None if dtype is None else as_dtype(dtype), lambda array: array, progress, int8)
    return hf_config, module, params


def _read(
    folder: Path,
    module: Any,
    dtype: np.dtype | None,
    place: Callable[[np.ndarray], Any],
    progress: Progress,
    int8: bool,
) -> Any:
    try:
        if not orbax.is_converted(folder):
            table = TABLES[module.config.model_type]
            return assemble(sources.tensors(folder), table, module, dtype, place, progress, int8)
        is_int8 = load_config(folder).get(_WEIGHTS) == INT8
        orbax.check_layout(folder)
        table = identity_table(module, is_int8)
        return assemble(orbax.tensors(folder), table, module, dtype, place, progress, int8 or is_int8)
    except OSError as error:
        raise SllmError(f"{folder} could not be read: {error}") from error


def _write_companions(folder: Path, source: Path | Model, hf_config: Mapping[str, Any], params: Any) -> None:
    """The files beside the weights; the config names the dtype that the weights have, if they all have one."""
    config = dict(hf_config)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    if len(dtypes) == 1:
        names = [name for name in ("dtype", "torch_dtype") if name in config] or ["torch_dtype"]
        config |= dict.fromkeys(names, dtypes.pop())
    write_json(folder / "config.json", config)
    if isinstance(source, Model):
        if source.generation_config:
            write_json(folder / "generation_config.json", source.generation_config)
    else:
        copy_companions(source, folder)
