"""The measures of a training run, as CSV and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import new_file
from sllm_jax.common.foreign import foreign
from sllm_jax.common.inputs import is_file, is_there
from sllm_jax.common.plot import Plot

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


@dataclass(frozen=True)
class Row:
    """The measures after a step; those on held-back text are None for most steps."""

    step: int
    tokens: int  # training tokens so far
    loss: float  # nats per token, mean over the steps since the last row
    gradient_norm: float
    learning_rate: float
    tokens_per_second: float
    held_back_nll: float | None = None  # nats per token
    held_back_bits_per_byte: float | None = None


def read_rows(path: Path, until: int, saved: np.ndarray) -> list[Row]:
    """The rows up to step `until`; empty if there is no file or no row.

    Raises `SllmError` if the `digest` of the rows is not `saved`, or the file cannot be read.
    """
    if not is_there(path):
        return []
    remedy = "remove it to continue without the earlier measures"
    if not is_file(path):
        raise SllmError(f"{path} is not a file; {remedy}")
    with foreign(str(path), remedy), path.open(encoding="utf-8", newline="") as file:
        rows = [Row(**{name: _number(name, value) for name, value in row.items()}) for row in csv.DictReader(file)]
    rows = [row for row in rows if row.step <= until]
    if rows and not np.array_equal(digest(rows), saved):
        raise SllmError(f"{path} is damaged: it differs from what was saved; {remedy}")
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV."""
    with new_file(path) as file:
        file.write(_as_csv(rows))


def digest(rows: Sequence[Row]) -> np.ndarray:
    """SHA-256 of the rows, uint8 [32]."""
    return np.frombuffer(sha256(_as_csv(rows)).digest(), np.uint8)


def _as_csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [entry.name for entry in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().encode()


def plot_rows(path: Path, rows: Sequence[Row], title: str) -> None:
    """Plot the loss on training and held-back text against tokens; the file suffix selects the format."""

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        learned = [row.tokens / 1e6 for row in rows], [row.loss for row in rows]
        axes.plot(*learned, color="0.6", linewidth=1, label="learned text")
        held = [(row.tokens / 1e6, row.held_back_nll) for row in rows if row.held_back_nll is not None]
        axes.plot([x for x, _ in held], [y for _, y in held], "o-", color="#00487A", label="held back")
        axes.set(xlabel="Tokens learned from (millions)", ylabel="Negative log-likelihood\n(nats per token)")
        axes.legend()
        axes.grid(alpha=0.3)

    with new_file(path) as file:
        file.write(Plot(draw, title=title).render(path.suffix[1:]))


def _number(name: str, value: str) -> Any:
    if name in ("step", "tokens"):
        return int(value)
    return float(value) if value else None
