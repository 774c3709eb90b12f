"""Folders of a model: the JSON files beside the weights, and new folders that appear whole or not at all."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from sllm_jax.errors import SllmError

CHAT_TEMPLATES = "additional_chat_templates"  # a folder of templates beside `chat_template.jinja`
_OTHER_FORMATS = {  # by a pattern of file names
    "*.gguf": "GGUF files, the format of llama.cpp, which is not read yet (give the original checkpoint)",
    "adapter_config.json": "a PEFT adapter (merge it into its base model first: merge_and_unload)",
    "consolidated.*": "the weights in the format of their publisher (give the Hugging Face version of the checkpoint)",
    "*.msgpack": "Flax weights (give the safetensors version of the checkpoint)",
    "*.h5": "TensorFlow weights (give the safetensors version of the checkpoint)",
    "*.onnx": "an ONNX model (give the safetensors version of the checkpoint)",
}
TOKENIZER_FILES = (  # patterns
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.*"),
)


def existing_folder(path: Path | str) -> Path:
    """The folder; raises `SllmError` if it is not there."""
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise SllmError(f"folder {path} not found; give one that exists")
    return folder


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `SllmError` if there is no such file or it holds something else."""
    if not path.is_file():
        raise SllmError(f"{path.parent} has no {path.name}; give the folder of a whole checkpoint")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SllmError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SllmError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SllmError(f"{path} must hold a JSON object; got {type(content).__name__}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as a JSON file that people can read."""
    path.write_text(json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model's folder; raises `SllmError` if it is missing or broken."""
    if not (folder / "config.json").is_file():
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        raise SllmError(f"{folder} has no config.json{other_format(names)}; give the folder of a whole checkpoint")
    return load_json(folder / "config.json")


def other_format(names: Iterable[str]) -> str:
    """What a folder of these files holds instead of a checkpoint, as a part of a sentence; empty if that is unknown."""
    names = list(names)
    for pattern, what in _OTHER_FORMATS.items():
        if fnmatch.filter(names, pattern):
            return f" but {what}"
    return ""


def load_generation_config(folder: Path) -> dict[str, Any]:
    """The `generation_config.json` of a model's folder; empty if there is none."""
    path = folder / "generation_config.json"
    return load_json(path) if path.exists() else {}


def copy_companions(source: Path, target: Path) -> None:
    """Copy what belongs beside the weights, as far as it is there: generation config and tokenizer."""
    for pattern in ("generation_config.json", *TOKENIZER_FILES):
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
    if (source / CHAT_TEMPLATES).is_dir():
        shutil.copytree(source / CHAT_TEMPLATES, target / CHAT_TEMPLATES)


def made_folder(path: Path) -> Path:
    """The folder, made if it is not there; raises `SllmError` if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SllmError(f"{path} could not be written: {error.strerror}") from error
    return path


def check_absent(path: Path) -> None:
    """Raises `SllmError` if there is something at `path` already, where a new folder is to be."""
    if Path(os.path.expanduser(path)).exists():
        raise SllmError(f"{path} exists already; name a folder that does not")


def check_writable(path: Path) -> None:
    """Raises `SllmError` unless a file can be written at `path`. Leaves nothing there."""
    path = Path(os.path.realpath(os.path.expanduser(path)))
    if path.is_dir():
        raise SllmError(f"{path} could not be written: it is a folder")
    if path.exists() and not path.is_file():
        return  # a pipe or a device, which only its own reader or driver can refuse
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SllmError(f"{path} could not be written: {error.strerror}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` at the end in one step, or removed after an exception.

    Raises `SllmError` if `path` exists already or cannot be written.
    """
    path = Path(os.path.expanduser(path)).absolute()
    if path.exists():
        raise SllmError(f"{path} exists already; name a folder that does not")
    temporary = path.parent / f".{path.name}.{uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise SllmError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, renamed to `path` at the end in one step, or removed after an exception.

    A link is followed; what is not a file, such as a pipe, is written to as it is. Raises `SllmError` if `path` cannot
    be written.
    """
    path = Path(os.path.realpath(os.path.expanduser(path)))
    special = path.exists() and not path.is_file()
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with (path if special else temporary).open("wb") as file:
            yield file
        if not special:
            temporary.replace(path)
    except OSError as error:
        raise SllmError(f"{path} could not be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what an interrupted `new_folder` has left beside `path`."""
    for left in path.absolute().parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
