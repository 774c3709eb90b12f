"""Installation hints for extras, used in messages. The package may come from a clone, a wheel or an index."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

_NAME = "sllm-jax"
_CLONE = Path(__file__).resolve().parents[2]  # a clone only if it has a pyproject.toml


def how_to_install(extra: str) -> str:
    """The command that adds an extra to this installation, phrased as the end of a sentence.

    It installs from the original source (PEP 610), so it also works for a package that is not on an index.
    """
    if (_CLONE / "pyproject.toml").is_file():
        return f"run pip install -e '.[{extra}]' in {_CLONE}"
    try:
        origin = json.loads(distribution(_NAME).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    url, vcs = origin.get("url", ""), origin.get("vcs_info")
    if "dir_info" in origin:
        return f"run pip install '.[{extra}]' in {unquote(urlsplit(url).path)}"
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f"run pip install '{_NAME}[{extra}]{f' @ {url}' if url else ''}'"
