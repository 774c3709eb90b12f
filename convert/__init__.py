"""Checkpoints: Hugging Face folders and GGUF files to parameters, to a converted checkpoint, and back to folders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sllm_jax.common import orbax
from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import copy_companions, load_config, load_generation_config, new_folder, write_json
from sllm_jax.common.gguf_file import is_gguf
from sllm_jax.common.progress import Progress, silent
from sllm_jax.common.tensor import Tensor
from sllm_jax.convert import gguf_config, gguf_tensors, sources
from sllm_jax.convert.assemble import assemble, identity_table, is_tied
from sllm_jax.convert.dtypes import as_dtype
from sllm_jax.convert.export import write_safetensors
from sllm_jax.convert.families import FAMILIES, module_for
from sllm_jax.convert.plausible import check_plausible
from sllm_jax.convert.sources import existing_source
from sllm_jax.convert.table import Table
from sllm_jax.core.int8 import INT8, check_weights, is_quantized
from sllm_jax.core.model import Model
from sllm_jax.models.unsupported import bare_architecture
from sllm_jax.text.gguf_tokenizer import write_tokenizer

__all__ = ["convert", "load_params", "read_config", "read_generation_config", "to_huggingface"]

_WEIGHTS = "weights"  # a key of the config.json of a converted checkpoint: the format of its weights, if not floats


def check_clone(package: Path, convert: Path) -> None:
    """Raises `SllmError` unless the folders of `sllm_jax` and `sllm_jax.convert` belong together.

    An editable install maps `sllm_jax.convert` to the `convert/` of the clone that it was made in. Python started in
    another clone finds `sllm_jax` in the working folder first.
    """
    if convert not in (package / "convert", package.parent / "convert"):
        raise SllmError(
            f"sllm_jax is imported from {package.parent}, but sllm_jax.convert from {convert.parent}; "
            "install the clone that you use (editable), or start Python outside the other clone"
        )


check_clone(Path(orbax.__file__).resolve().parents[1], Path(__file__).resolve().parent)


def load_params(source: Path | str, module: Any, progress: Progress = silent, weights: str | None = None) -> Any:
    """The parameters of `module`, in its dtype, from a Hugging Face folder, a GGUF file or a converted checkpoint.

    Tensors are read, cast and put on the default device one at a time. `progress` is called as progress(done, total),
    in tensors. `weights` "int8" quantizes linear layers (`sllm_jax.core.int8`). Raises one `SllmError` that lists
    everything wrong with the checkpoint.
    """
    source = existing_source(source)

    def place(array: np.ndarray) -> jax.Array:
        return jax.device_put(array).block_until_ready()

    int8 = check_weights(weights)
    return _read(source, module, dtype=as_dtype(module.dtype), place=place, progress=progress, int8=int8)


def convert(
    source: Path | str, out: Path | str, dtype: Any = None, progress: Progress = silent, weights: str | None = None
) -> None:
    """Write the checkpoint `source`, a folder or a GGUF file, as a converted checkpoint, the new folder `out`.

    `out` appears complete or not at all. With `dtype` None each tensor keeps its own. `weights` "int8" quantizes linear
    layers (`sllm_jax.core.int8`). Raises `SllmError` if `out` exists, or if the checkpoint does not fit its config.
    """
    source, int8 = existing_source(source), check_weights(weights)
    with new_folder(Path(out)) as folder:
        hf_config, _, params = _read_source(source, dtype, progress, int8)
        if is_quantized(params):
            hf_config = {**hf_config, _WEIGHTS: INT8}
        orbax.save(folder, params)
        _write_companions(folder, source, hf_config, params)


def to_huggingface(source: Path | str | Model, out: Path | str, dtype: Any = None, progress: Progress = silent) -> None:
    """Write a model, or the checkpoint in a folder or GGUF file, as a Hugging Face folder `out` for `transformers`.

    It holds safetensors, the config and, unless `source` is a `Model`, the tokenizer. `dtype` and errors: as in
    `convert`.
    """
    source = source if isinstance(source, Model) else existing_source(source)
    with new_folder(Path(out)) as folder:
        if isinstance(source, Model):
            hf_config, module, params = source.hf_config, source.module, source.params
            if not hf_config:
                raise SllmError("the model has no hf_config to write as config.json; give it one")
            if dtype is not None and not is_quantized(params):
                target = as_dtype(dtype)
                params = jax.tree.map(lambda array: np.asarray(array).astype(target), params)
        else:
            hf_config, module, params = _read_source(source, dtype, progress)
        if is_quantized(params):
            raise SllmError("int8 weights cannot be exported to Hugging Face; export the original checkpoint")
        if module.config.attention_sink == "zero":
            raise SllmError(
                "a model with attention_sink 'zero' cannot be exported: Hugging Face does not support its softmax"
            )
        write_safetensors(folder, params, _table(module), module)
        _write_companions(folder, source, module.config.with_current_names(hf_config), params)


def read_config(source: Path, dtype: Any) -> tuple[dict[str, Any], Any]:
    """The `config.json` of a model's folder, or that which a GGUF file stands for, and the module for it.

    If the config ties the head to the embedding but the checkpoint has two different matrices (a fine-tuned head), the
    module is untied, with a warning, as in transformers. A tied model saved without its head loads with a warning: it
    may be an embedding model. Raises `SllmError` for a config that is not supported.
    """
    hf_config = gguf_config.config(source) if is_gguf(source) else load_config(source)
    module = module_for(hf_config, dtype)
    refuse_quantized(hf_config, source)
    check_plausible(module.config, source)
    if module.config.tie_word_embeddings and (bare := bare_architecture(hf_config)):
        warnings.warn(
            f"{source}: config.json names a {bare:.80}, which has no head; the embedding is used as its head "
            "(tie_word_embeddings), but an embedding model generates meaningless text",
            stacklevel=3,
        )
    ties = module.config.tie_word_embeddings and not is_gguf(source) and not orbax.is_converted(source)
    if ties and not is_tied(_tensors(source, module), _table(module)):
        warnings.warn(
            f"{source}: config.json ties the head to the embedding, but the checkpoint has two different matrices; "
            "both are used (tie_word_embeddings is set to false)",
            stacklevel=3,
        )
        hf_config = hf_config | {"tie_word_embeddings": False}
        module = module_for(hf_config, dtype)
    return hf_config, module


def read_generation_config(source: Path | Model) -> dict[str, Any]:
    """The generation config of a model, of a folder, or that which a GGUF file stands for; empty if there is none."""
    if isinstance(source, Model):
        return dict(source.generation_config)
    return gguf_config.generation_config(source) if is_gguf(source) else load_generation_config(source)


def refuse_quantized(hf_config: Mapping[str, Any], folder: Path) -> None:
    """Raises `SllmError` that names the method if the checkpoint has a `quantization_config`."""
    quantization = hf_config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        name = " ".join(str(method or "bitsandbytes").split())[:40]  # the first configs did not name theirs
        raise SllmError(f"{folder} holds quantized weights ({name}); give a float32, float16 or bfloat16 checkpoint")


def _read_source(
    source: Path, dtype: Any, progress: Progress, int8: bool = False
) -> tuple[Mapping[str, Any], Any, Any]:
    """Config, module and parameters of a checkpoint. Parameters are NumPy arrays and take no accelerator memory."""
    hf_config, module = read_config(source, np.float32)
    dtype = None if dtype is None else as_dtype(dtype)
    params = _read(source, module, dtype=dtype, place=lambda array: array, progress=progress, int8=int8)
    return hf_config, module, params


def _read(
    source: Path,
    module: Any,
    *,
    dtype: np.dtype | None,
    place: Callable[[np.ndarray], Any],
    progress: Progress,
    int8: bool,
) -> Any:
    """The parameters of a folder or a GGUF file. The options are those of `assemble`."""
    try:
        if orbax.is_converted(source):
            is_int8 = load_config(source).get(_WEIGHTS) == INT8
            orbax.check_layout(source)
            tensors, table, int8 = orbax.tensors(source), identity_table(module, is_int8), int8 or is_int8
        else:
            tensors, table = _tensors(source, module), _table(module)
        return assemble(tensors, table, module, dtype=dtype, place=place, progress=progress, int8=int8)
    except OSError as error:
        raise SllmError(f"{source} could not be read: {error}") from error


def _tensors(source: Path, module: Any) -> Iterator[Tensor]:
    """The tensors of a Hugging Face folder or a GGUF file, under the names of Hugging Face."""
    return gguf_tensors.tensors(source, module, _table(module)) if is_gguf(source) else sources.tensors(source)


def _table(module: Any) -> Table:
    """How checkpoints of the module's family are laid out."""
    return FAMILIES[module.config.family].table


def _write_companions(folder: Path, source: Path | Model, hf_config: Mapping[str, Any], params: Any) -> None:
    """Write the files beside the weights. If all weights share a dtype, the config names it."""
    config = dict(hf_config)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    if len(dtypes) == 1:
        names = [name for name in ("dtype", "torch_dtype") if name in config] or ["torch_dtype"]
        config |= dict.fromkeys(names, dtypes.pop())
    write_json(folder / "config.json", config)
    if isinstance(source, Path) and not is_gguf(source):
        copy_companions(source, folder)
        return
    if generation_config := read_generation_config(source):
        write_json(folder / "generation_config.json", generation_config)
    if isinstance(source, Path):
        write_tokenizer(source, folder)
