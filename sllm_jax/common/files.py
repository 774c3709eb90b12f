"""Model folders: reading the JSON files beside the weights, and writing files and folders atomically."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sllm_jax.common.errors import SllmError
from sllm_jax.common.foreign import foreign, reason
from sllm_jax.common.inputs import check_file, is_file, is_folder, is_there, shown
from sllm_jax.common.unfinished import alone_in, remove_abandoned, unfinished

MAX_JSON = 2**26  # bytes; the largest published checkpoint index has about 2**23
MAX_DEPTH = 100
CHAT_TEMPLATES = "additional_chat_templates"  # folder of further templates beside `chat_template.jinja`
_OTHER_FORMATS = {  # keyed by a file name pattern
    "adapter_config.json": "a PEFT adapter (merge it into its base model first: merge_and_unload)",
    "consolidated.*": "weights in the original format (give the Hugging Face version of the checkpoint)",
    "*.msgpack": "Flax weights (give the safetensors version of the checkpoint)",
    "*.h5": "TensorFlow weights (give the safetensors version of the checkpoint)",
    "*.onnx": "an ONNX model (give the safetensors version of the checkpoint)",
}
TOKENIZER_FILES = (  # file name patterns
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.*"),
)


def existing_folder(path: Path | str) -> Path:
    """The path, with `~` expanded. Raises `SllmError` unless a folder exists there."""
    folder = Path(os.path.expanduser(path))
    if not is_folder(folder):
        raise SllmError(f"folder {shown(folder)} not found; give one that exists")
    return folder


def load_json(path: Path, remedy: str = "fetch the file again") -> dict[str, Any]:
    """The object in a JSON file.

    Raises `SllmError` with the `remedy` if the file is missing, is not JSON, holds no object, is larger than `MAX_JSON`
    bytes or is nested deeper than `MAX_DEPTH`.
    """
    if not is_there(path):
        raise SllmError(f"{shown(path.parent)} has no {path.name:.80}; give the folder of a complete checkpoint")
    check_file(path, MAX_JSON)
    with foreign(str(path), remedy, "is not JSON"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise SllmError(f"{path} must hold a JSON object; got {type(content).__name__}")
    check_depth(content, str(path))
    return content


def check_depth(content: Any, where: str) -> None:
    """Raises `SllmError` for lists and objects nested deeper than `MAX_DEPTH`, which would overflow recursive code."""
    inside, depth = [content], 0
    while inside:
        depth += 1
        if depth > MAX_DEPTH:
            raise SllmError(f"{where} is nested deeper than {MAX_DEPTH}; fetch the file again")
        values = [one.values() if isinstance(one, dict) else one for one in inside if isinstance(one, dict | list)]
        inside = [one for each in values for one in each if isinstance(one, dict | list)]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as an indented JSON file."""
    path.write_text(json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model's folder; raises `SllmError` if it is missing or broken."""
    if not is_there(folder / "config.json"):
        names = [path.name for path in folder.iterdir()] if is_folder(folder) else []
        raise SllmError(
            f"{shown(folder)} has no config.json{other_format(names)}; give the folder of a complete checkpoint"
        )
    return load_json(folder / "config.json")


def other_format(names: Iterable[str]) -> str:
    """The format of a folder with these files, as part of a sentence (" but ..."); empty if unknown."""
    names = list(names)
    for pattern, what in _OTHER_FORMATS.items():
        if fnmatch.filter(names, pattern):
            return f" but {what}"
    return ""


def load_generation_config(folder: Path) -> dict[str, Any]:
    """The `generation_config.json` of a model's folder; empty if there is none."""
    path = folder / "generation_config.json"
    return load_json(path) if is_there(path) else {}


def copy_companions(source: Path, target: Path) -> None:
    """Copy the generation config and the tokenizer files that exist in `source`."""
    for pattern in ("generation_config.json", *TOKENIZER_FILES):
        for path in source.glob(pattern):
            if is_file(path):
                shutil.copyfile(path, target / path.name)
    if is_folder(source / CHAT_TEMPLATES):
        shutil.copytree(source / CHAT_TEMPLATES, target / CHAT_TEMPLATES)


def made_folder(path: Path) -> Path:
    """The folder, created if it does not exist. Raises `SllmError` if that fails."""
    try:
        _make_folder(path)
    except OSError as error:
        raise SllmError(f"{shown(path)} could not be written: {reason(error)}") from error
    return path


def check_absent(path: Path) -> None:
    """Raises `SllmError` if no new folder can be created at `path`: it exists already, or the name is too long."""
    path = Path(os.path.expanduser(path))
    if is_there(path):
        raise SllmError(f"{path} exists already; name a new folder")
    _check_name(path)


def check_writable(path: Path) -> None:
    """Raises `SllmError` unless a file can be written at `path`. Creates no file."""
    path = Path(os.path.realpath(os.path.expanduser(path)))
    if is_folder(path):
        raise SllmError(f"{path} could not be written: it is a folder")
    if is_there(path) and not is_file(path):
        return  # pipe or device: only writing to it can show whether it works
    _check_name(path)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SllmError(f"{shown(path)} could not be written: {error.strerror}") from error


def _check_name(path: Path) -> None:
    """Raises `SllmError` for a path that is too long, has a file as a parent, or contains a loop of links."""
    try:
        os.lstat(f"{path}{'.' * 20}")  # temporary names are longer than final ones
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SllmError(f"{shown(path)} could not be written: {reason(error)}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` atomically, or remove it after an exception.

    The contents are synced to disk before the rename. Leftovers of killed processes are removed first. Raises
    `SllmError` if `path` exists already or cannot be written.
    """
    path = Path(os.path.expanduser(path)).absolute()
    remove_abandoned(path.parent, path.name)
    check_absent(path)
    try:
        _make_folder(path.parent)
        with unfinished(path) as temporary:
            temporary.mkdir()
            yield temporary
            _sync_tree(temporary)
            temporary.rename(path)
            _sync_folder(path.parent)
    except OSError as error:
        raise SllmError(f"{shown(path)} could not be written: {error!s:.300}") from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file beside `path`; rename it to `path` atomically, or remove it after an exception.

    The file is synced to disk before the rename. Leftovers of killed processes are removed first. Links are followed. A
    pipe or device is written to directly. Raises `SllmError` if `path` cannot be written.
    """
    path = Path(os.path.realpath(os.path.expanduser(path)))
    try:
        if is_there(path) and not is_file(path):
            with path.open("wb") as file:
                yield file
            return
        remove_abandoned(path.parent, path.name)
        with unfinished(path) as temporary:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
    except OSError as error:
        raise SllmError(f"{shown(path)} could not be written: {reason(error)}") from error


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Lock a folder for this process; create it if needed, and remove it at the end if it is empty.

    Raises `SllmError` if another process holds the lock, or if the folder cannot be written. On a file system without
    locks, other processes are not kept out.
    """
    path = made_folder(Path(os.path.expanduser(path)))
    with ExitStack() as stack:
        try:
            stack.enter_context(alone_in(path))
        except BlockingIOError as error:
            raise SllmError(f"another process is using {path}; wait until it ends, or name another folder") from error
        except OSError as error:
            raise SllmError(f"{path} could not be written: {reason(error)}") from error
        yield path


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder below the system's temporary folder; remove it at the end.

    Leftovers of killed processes are removed first. The parent is private to the user: in a shared folder, others could
    place links under the names that are removed. Raises `SllmError` if the parent belongs to another user.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    own = Path(tempfile.gettempdir()) / f"sllm-jax-{user}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != user:
        raise SllmError(f"{own} belongs to another user; set TMPDIR to a folder of your own")
    remove_abandoned(own)
    with unfinished(own / "scratch") as folder:
        folder.mkdir()
        yield folder


def _make_folder(path: Path) -> None:
    """Create a folder and its missing parents, and sync their directory entries to disk."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in missing:
        _sync_folder(one.parent)


def _sync_tree(folder: Path) -> None:
    """Sync all files below a folder, and their directory entries, to disk."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(place, name))
        _sync_folder(Path(place))


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # not supported everywhere; SQLite ignores the failure too
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
