"""The paper's experiments on a model and a text of one's own, listed here under their names."""

from __future__ import annotations

from collections.abc import Callable

from sllm_jax.errors import SllmError
from sllm_jax.reproduce import fig2, fig3, streameval, tables
from sllm_jax.reproduce.report import Report
from sllm_jax.reproduce.subject import Subject

EXPERIMENTS: dict[str, Callable[[Subject], Report]] = {
    "fig2": fig2.run,
    "fig3": fig3.run,
    "table1": tables.table1,
    "table2": tables.table2,
    "table6": tables.table6,
    "streameval": streameval.run,
}
WITHOUT_TEXT = ("streameval",)  # experiments that make their own


def experiment(name: str) -> Callable[[Subject], Report]:
    """The experiment of that name; raises `SllmError` if there is none."""
    if name not in EXPERIMENTS:
        raise SllmError(f"experiment {name!r} is not one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
