"""`reproduce`: the paper's experiments on any model and text."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sllm_jax.cli import options as o
from sllm_jax.cli import stdin
from sllm_jax.cli.console import note, progress
from sllm_jax.cli.option_groups import changed_options, expand_groups

if TYPE_CHECKING:
    from sllm_jax.reproduce import Experiment
    from sllm_jax.reproduce.experiment_inputs import ExperimentOptions

ALL = "all"
_PANEL = "Experiments"
_EVERYWHERE = (*(one.name for one in fields(o.ModelGroup)), "format")  # options of every experiment


@dataclass(frozen=True)
class ExperimentGroup:
    """The text and the sizes of an experiment."""

    text: Annotated[
        Path | None,
        Option(
            help='UTF-8 text that the model was not trained on; "-" reads standard input. Not needed by streameval, '
            "streamqa and fig10."
        ),
    ] = None
    max_tokens: Annotated[
        int | None, Option(help="Maximum number of tokens of the text.", show_default="the whole text")
    ] = None
    recompute_every: Annotated[
        int | None,
        Option(
            help="fig3, table1: evaluate re-computation on every Nth token.",
            show_default="about 2000 tokens in all",
            rich_help_panel=_PANEL,
        ),
    ] = None
    dense_tokens: Annotated[
        int | None,
        Option(
            help="fig3: number of tokens for dense attention.",
            show_default="4 trained contexts",
            rich_help_panel=_PANEL,
        ),
    ] = None
    lines: Annotated[
        int | None, Option(help="streameval: number of lines.", show_default="500", rich_help_panel=_PANEL)
    ] = None
    questions: Annotated[
        list[Path] | None,
        Option(
            help="streamqa: file of questions, JSON or JSON lines, in the format of Hugging Face (allenai/ai2_arc), "
            "ARC or LLM-Adapters; repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    max_questions: Annotated[
        int | None,
        Option(help="streamqa: maximum number of questions per file.", show_default="all", rich_help_panel=_PANEL),
    ] = None
    qa_format: Annotated[
        str,
        Option(help="streamqa: few-shot for any model, chat for chat models.", rich_help_panel=_PANEL),
    ] = "few-shot"
    cache_size: Annotated[
        list[int] | None,
        Option(
            help="fig10: total cache size in tokens, sinks and window; repeatable.",
            show_default="256 to 4096",
            rich_help_panel=_PANEL,
        ),
    ] = None
    seed: Annotated[int, Option(help="Seed of the values in streameval; nothing else is random.")] = 0
    format: Annotated[str, Option(help="Format of the plots: png, svg or pdf.")] = "png"

    def options(self, sizes: o.CacheSizes) -> ExperimentOptions:
        """The options for the library, with the questions read from their files. Raises `SllmError`."""
        from sllm_jax.reproduce.arc import read_files
        from sllm_jax.reproduce.experiment_inputs import ExperimentOptions

        return ExperimentOptions(
            max_tokens=self.max_tokens,
            start_size=sizes.start_size,
            recent_size=sizes.recent_size,
            recompute_every=self.recompute_every,
            dense_tokens=self.dense_tokens,
            lines=self.lines,
            questions=read_files(self.questions or []),
            max_questions=self.max_questions,
            qa_format=self.qa_format,
            cache_sizes=self.cache_size or (),
            seed=self.seed,
        )


@expand_groups
def reproduce(
    experiment: Annotated[
        str,
        Argument(
            help="fig2: attention on the first positions. fig3: perplexity along a long text, in four modes. "
            "table1: sinks, line breaks instead of sinks, no sinks, re-computation. table2: number of sinks. "
            "table6: size of the cache. stability: millions of tokens, with memory and speed. "
            "streameval: questions about earlier lines of an endless stream. "
            "streamqa: ARC questions in one stream. fig10: speed against re-computation. all: a report page of all.",
            metavar="EXPERIMENT",
        ),
    ],
    *,
    out: Annotated[Path, Option(help="The folder to write; it must not exist, except to continue `all`.")],
    source: o.ModelGroup,
    cache: o.CacheSizes,
    given: ExperimentGroup,
) -> None:
    """Reproduce one or all of the paper's experiments.

    Writes a new folder with the measurements (EXPERIMENT.csv), the plot (.png, if matplotlib is installed) and the
    table with its settings (.md), and prints the table. `all` writes a folder for each experiment and a report page
    (README.md); after an interruption, the same command continues. Options, text and questions are checked for all
    experiments before the first one starts.
    """
    from sllm_jax.common.errors import SllmError
    from sllm_jax.common.files import check_absent, work_folder
    from sllm_jax.common.plot import can_plot, check_format, no_plots
    from sllm_jax.reproduce import EXPERIMENTS, page, runner
    from sllm_jax.reproduce import experiment as experiment_of
    from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
    from sllm_jax.text.long_text import read_text

    out = Path(os.path.expanduser(out))
    chosen = {experiment: experiment_of(experiment)} if experiment != ALL else EXPERIMENTS
    if experiment == ALL and not given.questions:
        chosen = {name: one for name, one in chosen.items() if not one.needs("questions")}
    for name, one in chosen.items():
        for option in ("text", "questions"):
            if one.needs(option) and not getattr(given, option):
                raise SllmError(f"{name} needs {'a text' if option == 'text' else option}; give --{option} FILE")
    check_format(given.format)
    options = given.options(cache)
    if experiment == ALL:
        page.check_folder(out, chosen)
    else:
        check_absent(out)
    text = "" if given.text is None else read_text(stdin.as_file(given.text))
    if not can_plot():
        note(no_plots())
    model, tokenizer = source.load()
    names = {"model": source.model} | ({} if given.text is None else {"text": str(given.text)})
    inputs = ExperimentInputs(model, tokenizer, text, options, names)
    changed = changed_options(source, cache, given)
    if experiment == ALL:
        commands = {name: _command(changed, name, one, out / name) for name, one in chosen.items()}
        with work_folder(out):
            runner.run_all(chosen, inputs, out, commands, given.format, progress, tell=note)
    else:
        one, command = chosen[experiment], _command(changed, experiment, chosen[experiment], out)
        report = runner.run_experiment(experiment, one.plan(inputs), one, out, command, given.format, progress)
        print(report.markdown(), end="")
    note(f"wrote {out}")


def _command(changed: Mapping[str, object], name: str, experiment: Experiment, out: Path) -> str:
    """The command that runs this experiment alone, with the changed options that it uses."""
    words = ["sllm-jax", "reproduce", name]
    for option in (*_EVERYWHERE, *experiment.options):
        value = changed.get(option, [])
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{option.replace('_', '-')}", str(one)]
    return shlex.join([*words, "--out", str(out)])
