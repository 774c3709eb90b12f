"""An evaluation on disk: the nll of texts as it is found, and a checkpoint from which an interrupted one goes on."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sllm_jax import checkpoint
from sllm_jax.errors import SllmError
from sllm_jax.files import load_json, write_json
from sllm_jax.int8 import INT8, is_quantized
from sllm_jax.model import Model
from sllm_jax.perplexity import Reading, begin, check_token_ids, read_texts

CURVE_ROWS = 1000  # of a text's curve, about
_SETTINGS, _NLL, _CHECKPOINTS = "settings.json", "nll.npy", "checkpoints"
_BLOCK = 2**18  # tokens that are added up, or digested, in one go


@dataclass(frozen=True)
class How:
    """How texts are read: a mode of `MODES`, its sizes, and how many tokens at a time."""

    mode: str
    start_size: int
    recent_size: int
    chunk_size: int


class Evaluation:
    """The reading of texts in a folder of its own. `steps` does the work; `nll_of` has what was found."""

    def __init__(
        self, folder: Path, model: Model, texts: Sequence[np.ndarray], how: How, names: Mapping[str, Any]
    ) -> None:
        """Go on from what `folder` holds, or begin.

        Raises `SllmError` if that was another evaluation: other texts, sizes or `names`, which say whose they are.
        """
        self.texts = [check_token_ids(ids, model.config.vocab_size) for ids in texts]
        self.model, self.how, self._folder = model, how, folder
        self._ends = np.cumsum([len(ids) - 1 for ids in texts])
        settings = {
            **names,
            **{"mode": how.mode, "start size": how.start_size, "recent size": how.recent_size},
            "dtype": np.dtype(model.dtype).name,
            "weights": INT8 if is_quantized(model.params) else "floats",
            "texts": [_digest(ids) for ids in texts],
        }
        begun = begin(model, self.texts, how.mode, how.start_size, how.recent_size)
        self.nll, self._reading = self._open(settings, begun)

    @property
    def total(self) -> int:
        """Tokens to predict, in all texts."""
        return int(self._ends[-1])

    @property
    def done(self) -> int:
        """Tokens predicted so far."""
        return sum(self._reading.done)

    def steps(self) -> Iterator[tuple[int, float]]:
        """Do what is left; after each step the number of tokens done, and the sum of their nll."""
        nats = sum(_sum(self.nll_of(i)[:done]) for i, done in enumerate(self._reading.done))
        how = self.how
        for reading in read_texts(
            self.model, self.texts, how.mode, how.start_size, how.recent_size, how.chunk_size, since=self._reading
        ):
            for i, (found, done) in enumerate(zip(reading.nll, reading.done, strict=True)):
                self.nll_of(i)[done - len(found) : done] = found
                nats += float(found.sum(dtype=np.float64))
            self._reading = reading
            yield self.done, nats

    def save(self) -> None:
        """Write a checkpoint; raises `SllmError` if that fails."""
        self.nll.flush()
        checkpoint.save(self._folder / _CHECKPOINTS, self.done, _tree(self._reading))

    def remove(self) -> None:
        """Remove what it has in its folder, and the folder unless there is more in it."""
        shutil.rmtree(self._folder / _CHECKPOINTS, ignore_errors=True)
        for name in (_NLL, _SETTINGS):
            (self._folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()

    def nll_of(self, text: int) -> np.ndarray:
        """The nll [T - 1] of one of the texts, mapped from a file; zero where it is not found yet."""
        end = int(self._ends[text])
        return self.nll[end - len(self.texts[text]) + 1 : end]

    def mean(self, text: int) -> float:
        """The mean nll of a text."""
        nll = self.nll_of(text)
        return _sum(nll) / len(nll)

    def write_curve(self, file: BinaryIO, names: Sequence[str]) -> None:
        """The running log perplexity of each text as CSV, about `CURVE_ROWS` rows each, as far as it was read."""
        context = self.model.config.max_position_embeddings
        lines = TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["text", "tokens", "log_perplexity", "log_perplexity_since_last_row", "past_trained_context"])
        for i, name in enumerate(names):
            nll, nats = self.nll_of(i)[: self._reading.done[i]], 0.0
            step = max(1, len(nll) // CURVE_ROWS)
            for start in range(0, len(nll), step):
                part = nll[start : start + step]
                nats, end = nats + (added := _sum(part)), start + len(part)
                writer.writerow([name, end, f"{nats / end:.7g}", f"{added / len(part):.7g}", int(end > context)])
        lines.detach()

    def _open(self, settings: Mapping[str, Any], begun: Reading) -> tuple[np.memmap, Reading]:
        """The file of nll and the last checkpoint, or new ones."""
        path = self._folder / _NLL
        if not (self._folder / _SETTINGS).is_file():
            if any(self._folder.glob("[!.]*")):
                raise SllmError(f"{self._folder} holds other things than an evaluation; name a new folder")
            _write_zeros(path, self.total)
            write_json(self._folder / _SETTINGS, settings)
            return np.lib.format.open_memmap(path, "r+"), begun
        written = load_json(self._folder / _SETTINGS)
        if different := [name for name in settings if written.get(name) != settings[name]]:
            raise SllmError(
                f"{self._folder} holds another evaluation (not the same: {', '.join(different)}); "
                "resume with the same settings, or name a new folder"
            )
        done, state = checkpoint.restore(self._folder / _CHECKPOINTS, _tree(begun))
        try:
            nll = np.lib.format.open_memmap(path, "r+")
        except (OSError, ValueError) as error:
            raise SllmError(f"{path} is missing or damaged; remove {self._folder} to begin anew") from error
        return nll, Reading([], np.asarray(done).tolist(), state)


def _write_zeros(path: Path, count: int) -> None:
    """A .npy file of float32, written out: a file with holes ends in a bus error where the disk is full."""
    try:
        with path.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, count, _BLOCK):
                file.write(bytes(4 * min(_BLOCK, count - start)))
    except OSError as error:
        raise SllmError(f"{path} could not be written: {error.strerror}") from error


def _tree(reading: Reading) -> tuple[np.ndarray, Any]:
    return np.array(reading.done, np.int32), reading.state


def _sum(values: np.ndarray) -> float:
    """In float64, without a copy of all of it."""
    return sum(float(values[i : i + _BLOCK].sum(dtype=np.float64)) for i in range(0, len(values), _BLOCK))


def _digest(ids: np.ndarray) -> str:
    digest = sha256()
    for i in range(0, len(ids), _BLOCK):
        digest.update(ids[i : i + _BLOCK].astype(np.int64).tobytes())
    return digest.hexdigest()
