"""Resumable evaluations: the nll of texts in a memory-mapped file, with checkpoints of the stream states."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sllm_jax.common import checkpoint
from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import load_json, new_file
from sllm_jax.common.inputs import check_file, is_there
from sllm_jax.common.npy import map_array
from sllm_jax.core.int8 import INT8, is_quantized
from sllm_jax.core.kv_state import KVState, is_possible
from sllm_jax.core.model import Model
from sllm_jax.evaluate.perplexity import Reading, begin_reading, check_token_ids, token_nll_batch

CURVE_ROWS = 1000  # approximate rows per text in a curve
_SETTINGS, _NLL, _CHECKPOINTS = _OWN = ("settings.json", "nll.npy", "checkpoints")
_BLOCK = 2**18  # tokens summed or digested at a time


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation: one of `EVALUATION_MODES`, the cache sizes, and the tokens per device call."""

    mode: str
    start_size: int
    recent_size: int
    chunk_size: int


class Evaluation:
    """An evaluation of texts, kept in a folder. `steps` does the work; `nll_of` gives the results."""

    def __init__(
        self,
        folder: Path,
        model: Model,
        texts: Sequence[np.ndarray],
        settings: EvaluationSettings,
        names: Mapping[str, Any],
    ) -> None:
        """Resume the evaluation in `folder`, or begin a new one.

        `names` identifies the model and the texts. Raises `SllmError` if the folder holds an evaluation with other
        texts, settings or names.
        """
        self.texts = [check_token_ids(ids, model.config.vocab_size) for ids in texts]
        self.model, self.settings, self._folder = model, settings, folder
        self._ends = np.cumsum([len(ids) - 1 for ids in texts])
        record = {
            **names,
            **{"mode": settings.mode, "start size": settings.start_size, "recent size": settings.recent_size},
            "dtype": np.dtype(model.dtype).name,
            "weights": INT8 if is_quantized(model.params) else "floats",
            "texts": [_digest(ids) for ids in texts],
        }
        begun = begin_reading(model, self.texts, settings.mode, settings.start_size, settings.recent_size)
        self._digests = [sha256() for _ in texts]  # digests of the saved nll of each text
        self._digested = [0] * len(texts)
        self.nll, self._reading = self._open(record, begun)

    @property
    def total(self) -> int:
        """The number of tokens to predict in all texts."""
        return int(self._ends[-1])

    @property
    def done(self) -> int:
        """The number of tokens predicted so far."""
        return sum(self._reading.done)

    def steps(self) -> Iterator[tuple[int, float]]:
        """Do the remaining work; after each step, yield the number of tokens done and the sum of their nll."""
        nats = sum(_sum(self.nll_of(i)[:done]) for i, done in enumerate(self._reading.done))
        readings = token_nll_batch(
            self.model,
            self.texts,
            self.settings.mode,
            self.settings.start_size,
            self.settings.recent_size,
            self.settings.chunk_size,
            since=self._reading,
        )
        for reading in readings:
            for i, (found, done) in enumerate(zip(reading.nll, reading.done, strict=True)):
                self.nll_of(i)[done - len(found) : done] = found
                nats += float(found.sum(dtype=np.float64))
            self._reading = reading
            yield self.done, nats

    def save(self) -> None:
        """Write a checkpoint. Raises `SllmError` on failure."""
        self.nll.flush()
        self._digest_until(self._reading.done)
        checkpoint.save(self._folder / _CHECKPOINTS, self.done, self._tree(self._reading))

    def remove(self) -> None:
        """Remove the files of the evaluation from its folder.

        Checkpoints are removed first: without one, an evaluation starts over, whichever other files remain.
        """
        _discard(self._folder / _CHECKPOINTS)
        for name in (_NLL, _SETTINGS):
            (self._folder / name).unlink(missing_ok=True)

    def nll_of(self, text: int) -> np.ndarray:
        """The nll [T - 1] of a text, in nats, memory-mapped; zero where not evaluated yet."""
        end = int(self._ends[text])
        return self.nll[end - len(self.texts[text]) + 1 : end]

    def mean(self, text: int) -> float:
        """The mean nll of a text, in nats."""
        nll = self.nll_of(text)
        return _sum(nll) / len(nll)

    def write_curve(self, file: BinaryIO, names: Sequence[str]) -> None:
        """Write the running log perplexity of each text so far as CSV, with about `CURVE_ROWS` rows per text."""
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

    def _open(self, record: Mapping[str, Any], begun: Reading) -> tuple[np.memmap, Reading]:
        """Open the nll file and the last checkpoint, or create them.

        The settings are written first and atomically; they identify the evaluation. A process killed anywhere in this
        method or in `remove` leaves either nothing or settings without a checkpoint, from which both start over.
        """
        folder = self._folder
        _check_kinds(folder)
        if not _is_whole(folder / _SETTINGS):
            if any(path.name not in _OWN for path in folder.glob("[!.]*")) or _has_nll_alone(folder):
                raise SllmError(f"{folder} holds something other than an evaluation; name a new folder")
            _discard(folder / _CHECKPOINTS)  # checkpoints of an unknown evaluation
            _write_settings(folder / _SETTINGS, record)
        written = load_json(folder / _SETTINGS, f"remove {folder} to start over")
        if different := [name for name in record if written.get(name) != record[name]]:
            raise SllmError(
                f"{folder} holds another evaluation (different: {', '.join(different)}); "
                "resume with the same settings, or name a new folder"
            )
        tree = checkpoint.restore(folder / _CHECKPOINTS, begun_tree := self._tree(begun))
        if tree is begun_tree:
            _write_zeros(folder / _NLL, self.total)
            return _map_nll(folder / _NLL, self.total), begun
        done, state, digests = tree
        self._check(begun, done := np.asarray(done).tolist(), state)
        self.nll = _map_nll(folder / _NLL, self.total)
        self._digest_until(done)
        if not np.array_equal(self._digests_so_far(), digests):
            raise SllmError(
                f"{folder / _NLL} is damaged: it differs from what was saved; remove {folder} to start over"
            )
        return self.nll, Reading([], done, state)

    def _check(self, begun: Reading, done: Sequence[int], state: KVState | None) -> None:
        """Raises `SllmError` for values that no evaluation of these texts can have saved."""
        fit = all(0 <= count < len(ids) for count, ids in zip(done, self.texts, strict=True))
        if not fit or (state is not None and not is_possible(state, self.model.config.vocab_size)):
            raise SllmError(f"{self._folder} holds invalid numbers; remove it to start over")

    def _digest_until(self, done: Sequence[int]) -> None:
        """Update the digests with the nll since the last call."""
        for i, end in enumerate(done):
            nll = self.nll_of(i)
            for start in range(self._digested[i], end, _BLOCK):
                self._digests[i].update(nll[start : min(start + _BLOCK, end)].tobytes())
            self._digested[i] = end

    def _digests_so_far(self) -> np.ndarray:
        return np.stack([np.frombuffer(digest.digest(), np.uint8) for digest in self._digests])

    def _tree(self, reading: Reading) -> tuple[np.ndarray, Any, np.ndarray]:
        """The contents of a checkpoint: tokens done [B], the state, and the digest of the nll of each text [B, 32]."""
        return np.array(reading.done, np.int32), reading.state, self._digests_so_far()


def _discard(folder: Path) -> None:
    """Remove a folder by way of a hidden name, so that a kill never leaves it half removed under its own name."""
    hidden = folder.with_name(f".{folder.name}.discarded")
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(OSError):
        folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _check_kinds(folder: Path) -> None:
    """Raises `SllmError` if a file of the evaluation is a folder or a pipe, or its folder is not one."""
    for name, kind, fits in (
        (_SETTINGS, "file", Path.is_file),
        (_NLL, "file", Path.is_file),
        (_CHECKPOINTS, "folder", Path.is_dir),
    ):
        if (folder / name).exists() and not fits(folder / name):
            raise SllmError(f"{folder / name} is not a {kind}; remove it, or name a new folder")


def _is_whole(settings: Path) -> bool:
    """Whether the file exists and is not empty; a full disk leaves an empty one."""
    return is_there(settings) and check_file(settings).stat().st_size > 0


def _has_nll_alone(folder: Path) -> bool:
    """Whether there is an nll.npy without settings, such as `--nll-out` writes."""
    return is_there(folder / _NLL) and not is_there(folder / _SETTINGS)


def _write_settings(path: Path, record: Mapping[str, Any]) -> None:
    with new_file(path) as file:
        file.write(json.dumps(dict(record), indent=2, ensure_ascii=False).encode() + b"\n")


def _map_nll(path: Path, count: int) -> np.memmap:
    """The nll file, float32 [count], memory-mapped. Raises `SllmError` if it holds anything else."""
    remedy = f"remove {path.parent} to start over"
    nll = map_array(path, remedy, "r+")
    if nll.shape != (count,) or nll.dtype != np.dtype("<f4"):
        raise SllmError(f"{path} is damaged: it holds {nll.dtype} of shape {nll.shape}; {remedy}")
    return nll


def _write_zeros(path: Path, count: int) -> None:
    """Write a new .npy file of float32 zeros in full: writing to a sparse file on a full disk causes a bus error.

    An existing file is replaced, not modified, because another process may have it mapped.
    """
    with new_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count,)})
        for start in range(0, count, _BLOCK):
            file.write(bytes(4 * min(_BLOCK, count - start)))


def _sum(values: np.ndarray) -> float:
    """The sum in float64, computed in blocks to avoid a float64 copy."""
    return sum(float(values[i : i + _BLOCK].sum(dtype=np.float64)) for i in range(0, len(values), _BLOCK))


def _digest(ids: np.ndarray) -> str:
    digest = sha256()
    for i in range(0, len(ids), _BLOCK):
        digest.update(ids[i : i + _BLOCK].astype(np.int64).tobytes())
    return digest.hexdigest()
