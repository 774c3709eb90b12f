"""The paper's experiments on any model and text, registered here by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress, silent
from sllm_jax.reproduce import fig2, fig3, fig10, stability, streameval, streamqa, tables
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
from sllm_jax.reproduce.report import Report, Work


@dataclass(frozen=True)
class Experiment:
    """The planning function of an experiment, and the options of `reproduce` that it uses besides those of the model.

    `plan` checks the options, the text and the tokenizer within seconds, raises `SllmError` for invalid ones, and
    returns the function that does the work.
    """

    plan: Callable[[ExperimentInputs], Work]
    options: tuple[str, ...]

    def run(self, inputs: ExperimentInputs, progress: Progress = silent) -> Report:
        """Check the inputs and run the experiment. Raises `SllmError` for invalid inputs."""
        return self.plan(inputs)(progress)

    def needs(self, option: str) -> bool:
        """Whether the option is required."""
        return option in ("text", "questions") and option in self.options


_TEXT, _CACHE = ("text", "max_tokens"), ("start_size", "recent_size")

EXPERIMENTS = {
    "fig2": Experiment(fig2.plan, _TEXT),
    "fig3": Experiment(fig3.plan, (*_TEXT, *_CACHE, "recompute_every", "dense_tokens")),
    "table1": Experiment(tables.table1, (*_TEXT, *_CACHE, "recompute_every")),
    "table2": Experiment(tables.table2, (*_TEXT, *_CACHE)),
    "table6": Experiment(tables.table6, (*_TEXT, *_CACHE)),
    "stability": Experiment(stability.plan, (*_TEXT, *_CACHE)),
    "streameval": Experiment(streameval.plan, (*_CACHE, "lines", "seed")),
    "streamqa": Experiment(streamqa.plan, (*_CACHE, "questions", "max_questions", "qa_format")),
    "fig10": Experiment(fig10.plan, ("start_size", "cache_size")),
}


def experiment(name: str) -> Experiment:
    """The experiment of that name. Raises `SllmError` if there is none."""
    if name not in EXPERIMENTS:
        raise SllmError(f"experiment {name!r} is not one of {', '.join(EXPERIMENTS)}, all")
    return EXPERIMENTS[name]
