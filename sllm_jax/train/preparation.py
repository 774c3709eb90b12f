"""Preparing the folder of a run before its first step: settings, tokenizer, token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import load_json, new_folder, write_json
from sllm_jax.common.foreign import foreign
from sllm_jax.common.inputs import check_file, is_file, is_there, shown
from sllm_jax.common.progress import Progress, silent
from sllm_jax.convert.families import module_for
from sllm_jax.core.memory import bytes_of, check_free
from sllm_jax.core.model import parameter_shapes
from sllm_jax.train.bpe import save_tokenizer, train_tokenizer
from sllm_jax.train.packing import Samples, check_size, pack
from sllm_jax.train.settings import TrainingSettings
from sllm_jax.train.text import FORM_FEED, hold_back, read_documents

SETTINGS, TOKENIZER, LEARNED, HELD_BACK = "settings.json", "tokenizer", "learned.npy", "held_back.npy"
HELD_BACK_TEXT = "held_back.txt"
_REMEDY = "start a new run in another folder"
_PIECE = 2**20  # bytes


def prepare(out: Path, texts: Sequence[Path], settings: TrainingSettings, progress: Progress = silent) -> None:
    """Create the folder `out` atomically. `progress` is called as progress(documents tokenized, documents).

    Raises `SllmError` if `out` exists already, or the config or the texts cannot be used.
    """
    module = module_for(hf_config(settings), np.float32)
    config = module.config
    # Memory for weights, gradients and the two moments of Adam.
    check_free(4 * bytes_of(parameter_shapes(module)), "training a model of this config", "give a smaller config")
    learned, held = hold_back(read_documents(texts), settings.hold_back)
    for documents in (learned, held):
        check_size(documents, settings.context)
    with new_folder(out) as folder:
        tokenizer = train_tokenizer(learned, config.vocab_size, settings.sink, config.max_position_embeddings)
        save_tokenizer(tokenizer, folder / TOKENIZER)
        for name, documents in ((HELD_BACK, held), (LEARNED, learned)):
            row = pack(tokenizer, documents, progress)
            Samples(row, settings.context)  # raises if the text is too small
            np.save(folder / name, row)
        (folder / HELD_BACK_TEXT).write_text(FORM_FEED.join(held), encoding="utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        written = settings.as_json() | {
            "text": _fingerprint(texts),
            "text_names": [path.name for path in texts],
            "files": {path.relative_to(folder).as_posix(): _digest(path) for path in files},
        }
        write_json(folder / SETTINGS, written)


def check_same(out: Path, texts: Sequence[Path], settings: TrainingSettings) -> None:
    """Raises `SllmError` unless `out` was prepared with these settings and texts."""
    if not is_there(out / SETTINGS):
        raise SllmError(f"there is no run in {out} to resume; leave out --resume to start one")
    written = load_json(out / SETTINGS, _REMEDY)
    with foreign(str(out / SETTINGS), _REMEDY, "is damaged"):
        differences = settings.differences(written)
    if written.get("text") != _fingerprint(texts):
        differences.append("the text is different")
    if differences:
        raise SllmError(
            f"{out} holds another run ({'; '.join(differences)}); resume with the same settings, or name a new folder"
        )


def check_files(out: Path) -> None:
    """Raises `SllmError` unless all files that `prepare` wrote into `out` exist and match their digests."""
    files = load_json(out / SETTINGS, _REMEDY).get("files")
    if not isinstance(files, dict) or not {LEARNED, HELD_BACK, HELD_BACK_TEXT} <= files.keys():
        raise SllmError(f"{out / SETTINGS} is damaged or from an earlier version: it has no digests; {_REMEDY}")
    for name, digest in files.items():
        if not is_file(out / name) or _digest(out / name) != digest:
            raise SllmError(f"{out / name} is missing or damaged; {_REMEDY}")


def text_names(out: Path) -> list[str]:
    """The names of the text files of the run in `out`."""
    names = load_json(out / SETTINGS, _REMEDY).get("text_names")
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def hf_config(settings: TrainingSettings, **token_ids: int) -> Mapping[str, Any]:
    """The `config.json` of the trained model."""
    config = {
        name: value for name, value in settings.config.items() if name != "dtype"
    }  # name of `torch_dtype` in transformers 5
    return {**config, **token_ids, "attention_sink": settings.sink, "torch_dtype": "float32"}


def _fingerprint(texts: Sequence[Path]) -> str:
    """SHA-256 of the concatenated text files."""
    digest = sha256()
    for path in texts:
        with foreign(shown(path), "give a text"), check_file(path).open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    with foreign(str(path), _REMEDY), path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
