"""`load`: a model and its tokenizer, bundled, by Hugging Face name, or from a folder."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import jax

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import load_config
from sllm_jax.common.inputs import is_file
from sllm_jax.common.progress import Progress, silent
from sllm_jax.convert import load_params, read_config, read_generation_config
from sllm_jax.convert.dtypes import as_dtype
from sllm_jax.core.int8 import check_weights, is_quantized
from sllm_jax.core.model import Model
from sllm_jax.loading import hub
from sllm_jax.loading.bundle import DEFAULT_MODEL
from sllm_jax.text.tokenizer import load_tokenizer

SLOW_INT8 = "int8 weights save memory, but on a CPU decoding is no faster with them and prefill is slower"
__all__ = ["default_dtype", "load", "load_config"]


def default_dtype() -> str:
    """float32 on a CPU, bfloat16 on a GPU and a TPU."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load(
    name_or_folder: str | Path = DEFAULT_MODEL,
    dtype: Any = None,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    progress: Progress = silent,
    weights: str | None = None,
) -> tuple[Model, Any]:
    """Load a model and its tokenizer (None if it has none).

    `dtype`: "float32", "bfloat16", "float16", or one of these as a NumPy, JAX or PyTorch dtype; None: `default_dtype`.
    `revision`: branch, tag or commit of a Hugging Face name. `tokenizer`: a folder, file or Hugging Face name to load
    the tokenizer from instead. `progress` is called as progress(done, total), in tensors. `weights`: "int8" quantizes
    the weights of linear layers (`sllm_jax.core.int8`). Raises `SllmError` for a model that cannot be found, read or
    run.
    """
    check_weights(weights)
    dtype = as_dtype(default_dtype() if dtype is None else dtype)
    source = hub.resolve(name_or_folder, revision)
    hf_config, module = read_config(source, dtype)
    generation_config = read_generation_config(source)
    loaded_tokenizer = _tokenizer(source, tokenizer)
    params = load_params(source, module, progress, weights)
    if is_quantized(params) and jax.default_backend() == "cpu":
        warnings.warn(SLOW_INT8, stacklevel=2)
    return Model(module, params, hf_config, generation_config), loaded_tokenizer


def _tokenizer(source: Path, instead: str | Path | None) -> Any:
    if instead is None:
        return load_tokenizer(source)
    path = Path(os.path.expanduser(instead))
    loaded = load_tokenizer(path if is_file(path) else hub.resolve(instead, only_tokenizer=True))
    if loaded is None:
        raise SllmError(f"there is no tokenizer in {instead}; expected tokenizer.json or tokenizer.model")
    return loaded
