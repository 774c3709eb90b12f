"""Runs experiments and writes their folders: one, or several with a report page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from jax.errors import JaxRuntimeError

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import made_folder, new_folder
from sllm_jax.common.progress import Progress
from sllm_jax.reproduce import Experiment
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
from sllm_jax.reproduce.page import COMMAND, PAGE, is_made, write_page
from sllm_jax.reproduce.report import Report, Work

Watch = Callable[[str], AbstractContextManager[Progress]]  # context that shows the progress of the named experiment


def plan_all(experiments: Mapping[str, Experiment], inputs: ExperimentInputs) -> dict[str, Work]:
    """Plan all experiments. Raises one `SllmError` that lists every experiment that cannot be run."""
    planned, problems = {}, []
    for name, experiment in experiments.items():
        try:
            planned[name] = experiment.plan(inputs)
        except SllmError as error:
            problems.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
    if problems:
        raise SllmError("; ".join(problems))
    return planned


def run_experiment(
    name: str, work: Work, experiment: Experiment, out: Path, command: str, plot_format: str, watch: Watch
) -> Report:
    """Run a planned experiment and write its folder; `command` reproduces it. Raises `SllmError` on failure."""
    with watch(name) as progress, new_folder(out) as folder:
        try:
            found = work(progress)
        except JaxRuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise SllmError(f"{name} failed on the device ({reason}); use a smaller cache or model") from error
        report = replace(found, settings=_settings(found, experiment, command))
        report.write(folder, name, plot_format)
    return report


def _settings(report: Report, experiment: Experiment, command: str) -> dict[str, str]:
    """The settings with the command after the names of model and text, and without an unused text."""
    used = {key: value for key, value in report.settings.items() if key != "text" or experiment.needs("text")}
    names = {key: used[key] for key in ("model", "text") if key in used}
    return names | {COMMAND: command} | used


def run_all(
    experiments: Mapping[str, Experiment],
    inputs: ExperimentInputs,
    out: Path,
    commands: Mapping[str, str],
    plot_format: str,
    watch: Watch,
    tell: Callable[[str], None],
) -> None:
    """Write a folder in `out` for each experiment that its command has not yet written, and the report page.

    All experiments are checked before the first one runs. If some fail, the others still run, the page lists the
    reasons, and `SllmError` is raised at the end.
    """
    missing = {name: one for name, one in experiments.items() if not is_made(out, name, commands[name])}
    with watch("checking"):
        planned = plan_all(missing, inputs)
    made_folder(out)
    failed = {}
    for name, experiment in missing.items():
        try:
            run_experiment(name, planned.pop(name), experiment, out / name, commands[name], plot_format, watch)
            tell(f"finished {name}")
        except SllmError as error:
            failed[name] = str(error)
            tell(f"{name}: {error}")
    write_page(out, inputs.names["model"], commands, failed)
    if failed:
        raise SllmError(f"{', '.join(failed)} failed; {out / PAGE} has the reasons and the other experiments")
