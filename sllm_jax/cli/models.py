"""`models`: the supported models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sllm_jax.cli import options as o

if TYPE_CHECKING:
    from sllm_jax.convert.families import Published


def models(as_json: o.Json = False) -> None:
    """List the supported models and their options.

    MODEL_TYPE and the options are keys of config.json. Any other option that may change what the model computes is
    refused with an error that names it. In a pipe, columns are separated by tabs.
    """
    from sllm_jax.convert.families import published
    from sllm_jax.loading.bundle import bundled_names
    from sllm_jax.models.activations import ACTIVATIONS
    from sllm_jax.models.config import SINKS
    from sllm_jax.models.position import ROPE_KINDS

    lists = {
        "rope_scaling": list(ROPE_KINDS),
        "activations": list(ACTIVATIONS),
        "attention_sink": list(SINKS),
        "bundled": bundled_names(),
    }
    if as_json:
        rows = [{"model_type": name, **entry._asdict()} for name, entry in published().items()]
        print(json.dumps({"models": rows, **lists}))
    else:
        _print(published(), lists)


def _print(models: Mapping[str, Published], lists: Mapping[str, Sequence[str]]) -> None:
    """Print a table on a terminal, else tab-separated rows; then a line for each list."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    rows = [(name, *entry) for name, entry in models.items()]
    if console.is_terminal:
        columns = (Column(name, overflow="fold") for name in ("model_type", "models", "options"))
        table = Table(*columns, show_lines=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        print("\n".join("\t".join(row) for row in rows))
    for name, values in lists.items():
        print(f"{name}: {', '.join(values)}")
