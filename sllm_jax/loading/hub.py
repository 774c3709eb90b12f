"""Names to folders and GGUF files: bundled models, and Hugging Face models from the hub or its local cache."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import constants, errors

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import CHAT_TEMPLATES, TOKENIZER_FILES, other_format
from sllm_jax.common.foreign import foreign
from sllm_jax.common.gguf_file import SUFFIX, is_gguf, models_among, parts_by_name
from sllm_jax.common.inputs import check_file, is_file, is_folder, is_there, shown
from sllm_jax.convert.sources import PICKLE, SAFETENSORS, WEIGHT_FILES, existing_source
from sllm_jax.loading.bundle import PREFIX, bundled_folder

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co")
_REVISION = r"(refs/(?:pr/\d+|convert/\w+)|[^/]+)"  # a branch, tag, commit, or special ref of the hub
_TIMEOUT = 10  # seconds to wait for the hub before the local cache is used


def resolve(name_or_path: str | Path, revision: str | None = None, only_tokenizer: bool = False) -> Path:
    """The folder or GGUF file of a model: local, bundled, or of Hugging Face, downloaded if it is not cached.

    A Hugging Face model is given as `org/model`, as the URL of its page (`https://huggingface.co/org/model`, optionally
    with `/tree/REVISION`, or the same on the mirror in HF_ENDPOINT), as `hf://org/model@REVISION`, or as its folder in
    the cache (`models--org--model`). Config, tokenizer and the weights in one format are downloaded; with
    `only_tokenizer` no weights. A GGUF file of the hub is given as `org/model/FILE.gguf`, or by its URL. Raises
    `SllmError` for a path that does not exist, and for a model that is unknown, gated, or neither cached nor reachable.
    """
    name, file = str(name_or_path), None
    if name.startswith(PREFIX):
        return bundled_folder(name)
    if "://" in name or _path_of_page(name):
        name, revision, file = _of_address(name, revision)
    elif found := _local(name, revision):
        return found if only_tokenizer else existing_source(found)
    elif isinstance(name_or_path, Path) or ((file := _file_of_hub(name)) is None and _is_path(name)):
        kind = "file" if name.lower().endswith(SUFFIX) else "folder"
        raise SllmError(f"{kind} {name:.200} not found; give one that exists, or a Hugging Face name such as org/model")
    if file:
        name = "/".join(name.split("/")[:2])
        return _from_hub(name, revision, partial(gguf_files, file)) / file
    if only_tokenizer:
        return _from_hub(name, revision, tokenizer_files)
    return existing_source(_from_hub(name, revision, model_files))


def _local(name: str, revision: str | None) -> Path | None:
    """The folder or GGUF file at a local path; None if nothing is there. Raises `SllmError` for anything else."""
    path = Path(os.path.expanduser(name))
    if not name or not is_there(path):
        return None
    if is_gguf(path):
        return path
    if not is_folder(path):
        kind = "a file" if is_file(path) else "not a folder"
        raise SllmError(f"{name:.200} is {kind}; give the folder of the model, or a GGUF file (.gguf)")
    return _snapshot(path, revision) if path.name.startswith("models--") else path


def _file_of_hub(name: str) -> str | None:
    """The file in `org/model/FILE.gguf`; None for any other name."""
    found = re.fullmatch(r"[^./~\\][^/\\]*/[^/\\]+/([^\\]+\.gguf)", name, re.IGNORECASE)
    return found and found[1]


def _of_address(address: str, revision: str | None) -> tuple[str, str | None, str | None]:
    """Name, revision and GGUF file of a model from the URL of its page or of one of its files."""
    if path := re.fullmatch(rf"hf://(?:models/)?([^@]+)(?:@{_REVISION})?(.*)", unquote(address), re.DOTALL):
        name, found, rest = path[1], path[2], path[3]
        rest = rest if found else name.strip("/").partition("/")[2].partition("/")[2]
    elif page := _path_of_page(address):
        name, *parts = re.split(rf"/(?:tree|blob|resolve|commit)/{_REVISION}", unquote(page), maxsplit=1)
        found, rest = parts or (None, "")
    else:
        raise SllmError(
            f"{address} is not an address of Hugging Face, or of the mirror that HF_ENDPOINT names; "
            "give one, or a name such as org/model, or a folder"
        )
    name = "/".join(name.strip("/").split("/")[:2]).removesuffix(".git")
    if name.startswith(("datasets/", "spaces/")):
        raise SllmError(f"{address} is not the address of a model; give one such as https://huggingface.co/org/model")
    if revision is not None and found not in (None, revision):
        raise SllmError(f"{address} names the revision {found}, and --revision {revision}; give one of them")
    file = rest.strip("/")
    return name, revision or found, file if file.lower().endswith(SUFFIX) else None


def _path_of_page(address: str) -> str | None:
    """The path in a URL of Hugging Face or its mirror; None for any other URL."""
    mirror = re.sub(r"^https?://", "", constants.ENDPOINT)
    hosts = "|".join(re.escape(host) for host in (*_HOSTS, mirror) if host)
    page = re.fullmatch(rf"(?:https?://)?(?:{hosts})/([^?#]+).*", address, re.IGNORECASE | re.DOTALL)
    return page and page[1]


def _snapshot(folder: Path, revision: str | None) -> Path:
    """The snapshot folder of a model in the hub's cache; raises `SllmError` if the revision is not cached."""
    ref, snapshots = folder / "refs" / (revision or "main"), folder / "snapshots"
    with foreign(shown(ref), "give a revision", "is not a reference"):
        commit = check_file(ref).read_text(encoding="utf-8").strip() if is_there(ref) else revision
    found = sorted(path for path in snapshots.glob("*") if is_folder(path))
    chosen = [path for path in found if path.name == commit] or (found if commit is None else [])
    if len(chosen) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise SllmError(f"{folder} has no snapshot of {revision or 'main'}; give one of its snapshots ({there})")
    return chosen[0]


def model_files(files: Iterable[str]) -> list[str]:
    """The files of a repository that loading needs: config, tokenizer, and weights in one format."""
    files = list(files)
    found = next((name for name in WEIGHT_FILES if name in files), None)
    if found is None and (models := models_among(files)):
        if len(models) > 1:
            raise SllmError(f"it has several GGUF files; give one as org/model/FILE: {', '.join(models[:20])}")
        return gguf_files(models[0], files)
    if found is None or "config.json" not in files:
        raise SllmError(
            f"expected config.json and one of {', '.join(WEIGHT_FILES)} among its files{other_format(files)}"
        )
    weights = [found]
    if found.endswith(".index.json"):
        stem, suffix = os.path.splitext(PICKLE if found.startswith(PICKLE) else SAFETENSORS)
        shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}")
        weights += [name for name in files if shard.fullmatch(name)]
    return [*weights, "generation_config.json", *tokenizer_files(files)]


def gguf_files(file: str, files: Iterable[str]) -> list[str]:
    """A GGUF file of a repository and its further parts; raises `SllmError` if one of them is absent."""
    files, (folder, _, name) = list(files), file.rpartition("/")
    wanted = [f"{folder}/{part}" if folder else part for part in parts_by_name(name)]
    if absent := [one for one in wanted if one not in files]:
        there = ", ".join(models_among(files)[:20]) or "none"
        raise SllmError(f"it has no {absent[0]:.200}; its GGUF files: {there}")
    return wanted


def tokenizer_files(files: Iterable[str]) -> list[str]:
    """The config and tokenizer files of a repository."""
    files = list(files)
    here = [name for name in files if "/" not in name]  # * in a pattern also matches /
    found = [name for name in here if any(fnmatchcase(name, like) for like in TOKENIZER_FILES)]
    return ["config.json", *found, *(name for name in files if fnmatchcase(name, f"{CHAT_TEMPLATES}/*.jinja"))]


def _is_path(name: str) -> bool:
    return not name or name[0] in "./~" or name.count("/") > 1 or "\\" in name or name.lower().endswith(SUFFIX)


def _from_hub(name: str, revision: str | None, choose: Callable[[Iterable[str]], list[str]]) -> Path:
    try:
        listed = huggingface_hub.model_info(name, revision=revision, timeout=_TIMEOUT).siblings or ()
        files = choose(file.rfilename for file in listed)
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except SllmError as error:
        raise SllmError(f"{name} on Hugging Face cannot be loaded: {error}") from None
    except Exception as error:  # the hub's HTTP library and its errors differ between releases
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise SllmError(f"{name} cannot be stored in {constants.HF_HUB_CACHE}: {error.strerror}") from error
        if cached := _cached(name, revision, choose):
            return cached
        raise _explained(name, revision, error) from error


def _cached(name: str, revision: str | None, choose: Callable[[Iterable[str]], list[str]]) -> Path | None:
    """The model's folder in the local cache if it has all files that `choose` needs, else None."""
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, local_files_only=True, allow_patterns=["config.json"]
            )
        )
        choose(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    except (errors.LocalEntryNotFoundError, ValueError):  # SllmError is a ValueError: no weights in the cache
        return None
    return folder


def _explained(name: str, revision: str | None, error: Exception) -> SllmError:
    match error:
        case errors.GatedRepoError():
            page = f"{constants.ENDPOINT}/{name}"
            return SllmError(f"{name} is gated: accept its licence at {page}, then run `hf auth login`")
        case errors.RevisionNotFoundError():
            return SllmError(f"{name} has no revision {revision!r} on Hugging Face")
        case errors.RepositoryNotFoundError():
            return SllmError(
                f"{name:.200} is neither a folder nor a Hugging Face model (for a private one: `hf auth login`)"
            )
        case errors.HFValidationError():
            return SllmError(f"{name[:200]!r} is neither a folder nor a Hugging Face name such as org/model")
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{type(error).__name__}: {error}".split("\n")[0]
    return SllmError(
        f"{name} is not in the local cache {constants.HF_HUB_CACHE} and cannot be fetched ({why}); "
        "fetch it once while online, or give a folder"
    )
