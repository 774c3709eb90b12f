"""`models`: what is supported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sllm_jax.cli import options as o

if TYPE_CHECKING:
    from sllm_jax.models import Kind


def models(as_json: o.Json = False) -> None:
    """List the models that are supported, with the options of each.

    MODEL_TYPE and the options are what stands in a model's config.json. An option that is not listed and changes what a
    model computes is refused by name. In a pipe, columns are separated by tabs.
    """
    from sllm_jax.bundle import bundled_names
    from sllm_jax.models import KINDS
    from sllm_jax.models.config import SINKS
    from sllm_jax.models.layers import ACTIVATIONS
    from sllm_jax.position import ROPE_KINDS

    lists = {
        "rope_scaling": list(ROPE_KINDS),
        "activations": list(ACTIVATIONS),
        "attention_sink": list(SINKS),
        "bundled": bundled_names(),
    }
    if as_json:
        kinds = [{"model_type": name, "models": kind.models, "options": kind.options} for name, kind in KINDS.items()]
        print(json.dumps({"models": kinds, **lists}))
    else:
        _print(KINDS, lists)


def _print(kinds: Mapping[str, Kind], lists: Mapping[str, Sequence[str]]) -> None:
    """A table on a terminal, plain rows elsewhere; then one line for each list."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    rows = [(name, kind.models, kind.options) for name, kind in kinds.items()]
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
