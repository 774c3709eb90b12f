"""Experiments as folders: one, whole or not at all, or each of several and a page of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from jax.errors import JaxRuntimeError

from sllm_jax.errors import SllmError
from sllm_jax.files import new_folder
from sllm_jax.progress import Progress
from sllm_jax.reproduce import Experiment
from sllm_jax.reproduce.page import COMMAND, PAGE, is_made, prepare, write_page
from sllm_jax.reproduce.subject import Subject

Watch = Callable[[str], AbstractContextManager[Progress]]  # entered while the experiment of that name is made


def make(name: str, experiment: Experiment, subject: Subject, out: Path, command: str, watch: Watch) -> str:
    """Write the folder of one experiment, and return its tables; `command` is what makes it again.

    Raises `SllmError` if it cannot be made.
    """
    names = {key: value for key, value in subject.names.items() if key != "text" or experiment.needs("text")}
    with watch(name) as progress, new_folder(out) as folder:
        try:
            report = experiment.run(replace(subject, names=names | {COMMAND: command}, progress=progress))
        except JaxRuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise SllmError(f"{name} failed on the device ({reason}); a smaller cache or model takes less") from error
        report.write(folder, name)
    return report.markdown()


def make_all(
    experiments: Mapping[str, Experiment],
    subject: Subject,
    out: Path,
    commands: Mapping[str, str],
    watch: Watch,
    tell: Callable[[str], None],
) -> None:
    """A folder in `out` for each experiment, unless its command has made it already, and the page.

    Raises `SllmError` at the end if some could not be made; the page says why, and has the others.
    """
    prepare(out, experiments)
    made = {name: is_made(out, name, command) for name, command in commands.items()}
    failed = {}
    for name, experiment in experiments.items():
        try:
            if not made[name]:
                make(name, experiment, subject, out / name, commands[name], watch)
                tell(f"made {name}")
        except SllmError as error:
            failed[name] = str(error)
            tell(f"{name}: {error}")
    write_page(out, subject.names["model"], commands, failed)
    if failed:
        raise SllmError(f"{', '.join(failed)} could not be made; {out / PAGE} says why, and has the others")
