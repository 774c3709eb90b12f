"""The models that come with the package: `bundled:NAME` to the folder `sllm_jax/bundled/NAME`."""

from __future__ import annotations

from pathlib import Path

from sllm_jax.common.errors import SllmError

PREFIX = "bundled:"
DEFAULT_MODEL = f"{PREFIX}llama"
FOLDER = Path(__file__).parents[1] / "bundled"


def bundled_names() -> list[str]:
    """The names of the bundled models, with the prefix."""
    return sorted(f"{PREFIX}{config.parent.name}" for config in FOLDER.glob("*/config.json"))


def bundled_folder(name: str) -> Path:
    """The folder of a bundled model; raises `SllmError` for an unknown name."""
    if name not in (names := bundled_names()):
        raise SllmError(f"there is no model {name!r} in this package; expected one of {', '.join(names)}")
    return FOLDER / name.removeprefix(PREFIX)
