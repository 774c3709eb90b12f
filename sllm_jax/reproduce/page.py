"""The report page of `reproduce all`: the tables, plot and command of every experiment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import check_absent, existing_folder, new_file
from sllm_jax.common.foreign import foreign
from sllm_jax.common.inputs import is_file, is_there
from sllm_jax.common.plot import FORMATS
from sllm_jax.common.unfinished import remove_abandoned

PAGE = "README.md"
_TITLE = "# The paper's experiments on"
COMMAND = "command"  # name of the setting that holds the command


def check_folder(folder: Path, experiments: Iterable[str]) -> None:
    """Raises `SllmError` if `folder` holds anything but such a report. Removes leftovers of killed processes."""
    if not is_there(folder):
        return check_absent(folder)
    page = folder / PAGE
    remove_abandoned(existing_folder(folder))
    others = {path.name for path in folder.glob("[!.]*")} - {PAGE, *experiments}
    another = is_there(page) and not (is_file(page) and page.read_bytes().startswith(_TITLE.encode()))
    if others or another:
        found = ", ".join(sorted(others)) or PAGE
        raise SllmError(f"{folder} holds something other than a report ({found}); name a new folder")


def is_made(folder: Path, name: str, command: str) -> bool:
    """Whether `folder` holds this experiment. Raises `SllmError` if it is damaged or was made by another command."""
    path = folder / name / f"{name}.md"
    if not is_there(path.parent):
        return False
    if f"| {COMMAND} | {command} |" not in _text_of(path):
        raise SllmError(f"{folder / name} was made by another command; name a new folder, or remove it")
    return True


def write_page(folder: Path, model: str, commands: Mapping[str, str], failed: Mapping[str, str]) -> None:
    """Write the page of the experiments in `folder`; for those in `failed`, state the reason."""
    parts = [f"{_TITLE} {model}"]
    for name, command in commands.items():
        if name in failed:
            parts.append(f"## {name}\n\nFailed: {failed[name]}.")
            continue
        report = _text_of(folder / name / f"{name}.md")
        heading, _, body = report.partition("\n")
        tables, _, settings = body.strip().rpartition("\n\n")
        settings = re.sub(rf"^\| {COMMAND} \|.*\n?", "", settings, flags=re.MULTILINE).rstrip()
        parts += [f"## {heading.removeprefix('# ')}", *_plots(folder, name), f"```bash\n{command}\n```", tables]
        parts.append(f"<details><summary>Settings</summary>\n\n{settings}\n\n</details>")
    with new_file(folder / PAGE) as file:
        file.write(("\n\n".join(parts) + "\n").encode())


def _text_of(report: Path) -> str:
    remedy = f"remove {report.parent} to run it again"
    if not is_file(report):
        raise SllmError(f"{report} is missing, or is not a file; {remedy}")
    with foreign(str(report), remedy, "is damaged"):
        return report.read_text(encoding="utf-8")


def _plots(folder: Path, name: str) -> list[str]:
    """Markdown that embeds the plot of an experiment, or links to a PDF; empty if there is no plot."""
    paths = [f"{name}/{name}.{kind}" for kind in FORMATS]
    found = [path for path in paths if is_file(folder / path)]
    return [f"[{'the plot' if path.endswith('.pdf') else f'![{name}]({path})'}]({path})" for path in found]
