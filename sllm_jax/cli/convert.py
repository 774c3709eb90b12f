"""`convert`: Hugging Face checkpoints to Orbax, and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from typer import Option

from sllm_jax.cli import options as o
from sllm_jax.cli.console import note, progress
from sllm_jax.common.errors import SllmError


def convert(
    source: o.Source,
    out: o.Out,
    to: Annotated[
        str, Option(help="orbax: checkpoint of this package. huggingface: safetensors for transformers.")
    ] = "orbax",
    revision: o.Revision = None,
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16.", show_default="unchanged")] = None,
    weights: o.Weights = None,
) -> None:
    """Convert a checkpoint, with its config and tokenizer.

    Converting is optional: every command loads Hugging Face names and folders directly.
    """
    from sllm_jax.convert import convert as to_orbax
    from sllm_jax.convert import to_huggingface
    from sllm_jax.core.int8 import check_weights
    from sllm_jax.loading import hub

    writers: dict[str, Callable[..., None]] = {
        "orbax": partial(to_orbax, weights=weights),
        "huggingface": to_huggingface,
    }
    if to not in writers:
        raise SllmError(f"--to {to!r} is not one of {', '.join(writers)}")
    if check_weights(weights) and to != "orbax":
        raise SllmError(f"--weights {weights} needs --to orbax; Hugging Face checkpoints are written as floats")
    found = hub.resolve(source, revision)
    with progress("converting") as bar:
        writers[to](found, out, dtype, bar)
    note(f"wrote {out}")
