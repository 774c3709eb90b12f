"""`reproduce`: one of the paper's experiments on a model and a text of one's own, or all of them."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sllm_jax.cli import options as o
from sllm_jax.cli import stdin
from sllm_jax.cli.console import note, progress
from sllm_jax.loading.bundle import DEFAULT_MODEL

if TYPE_CHECKING:
    from sllm_jax.reproduce import Experiment

ALL = "all"
_EVERYWHERE = ("model", "revision", "tokenizer", "dtype", "weights", "format")
_PANEL = "Experiments"


def reproduce(
    experiment: Annotated[
        str,
        Argument(
            help="fig2: attention on the first positions. fig3: perplexity along a long text, in four modes. "
            "table1: sinks, line breaks in their place, none, re-computation. table2: number of sinks. "
            "table6: size of the cache. stability: millions of tokens, with memory and speed. "
            "streameval: questions about earlier lines of an endless stream. "
            "streamqa: ARC questions in one stream. fig10: speed against re-computation. all: a page of them all.",
            metavar="EXPERIMENT",
        ),
    ],
    out: Annotated[Path, Option(help="The folder to write; it must not exist yet, but `all` goes on in one of its.")],
    text: Annotated[
        Path | None,
        Option(
            help='A text that the model was not trained on, UTF-8; "-" is standard input. streameval, streamqa and '
            "fig10 need none."
        ),
    ] = None,
    model: o.Model = DEFAULT_MODEL,
    max_tokens: Annotated[
        int | None, Option(help="Use this many tokens of the text at most.", show_default="the whole text")
    ] = None,
    start_size: o.StartSize = 4,
    recent_size: o.RecentSize = None,
    recompute_every: Annotated[
        int | None,
        Option(
            help="fig3, table1: re-compute one token in so many.",
            show_default="about 2000 in all",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    dense_tokens: Annotated[
        int | None,
        Option(
            help="fig3: read this many tokens with dense attention.",
            show_default="4 trained contexts",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    lines: Annotated[
        int | None, Option(help="streameval: lines of the stream.", show_default="500", rich_help_panel=_PANEL)
    ] = None,
    questions: Annotated[
        list[Path] | None,
        Option(
            help="streamqa: a file of questions, JSON or JSON lines, as Hugging Face (allenai/ai2_arc), ARC itself or "
            "LLM-Adapters have them; may be given several times.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    max_questions: Annotated[
        int | None,
        Option(help="streamqa: use this many of each file at most.", show_default="all", rich_help_panel=_PANEL),
    ] = None,
    qa_format: Annotated[
        str,
        Option(help="streamqa: few-shot, for any model, or chat, for one that was tuned to.", rich_help_panel=_PANEL),
    ] = "few-shot",
    cache_size: Annotated[
        list[int] | None,
        Option(
            help="fig10: tokens that a cache keeps, sinks and window; may be given several times.",
            show_default="256 to 4096",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    revision: o.Revision = None,
    tokenizer: o.Tokenizer = None,
    dtype: o.Dtype = None,
    weights: o.Weights = None,
    seed: Annotated[int, Option(help="Of the values in streameval; nothing else is random.")] = 0,
    plot_format: Annotated[str, Option("--format", help="Of the plots: png, svg or pdf.")] = "png",
) -> None:
    """Reproduce an experiment of the paper, or all.

    Writes a new folder with the figures (EXPERIMENT.csv), the plot (.png, if matplotlib is installed) and the table
    with its settings (.md), and prints the table. `all` writes such a folder for each experiment and a page (README.md)
    of them; interrupted, the same command goes on with what is missing. Options, text and questions are checked for all
    experiments before the first one is made.
    """
    asked = {name: value for name, value in locals().items() if value not in (None, _default(name))}
    asked["format"] = asked.pop("plot_format", [])
    from sllm_jax.common.errors import SllmError
    from sllm_jax.common.files import check_absent, work_folder
    from sllm_jax.common.plot import can_plot, check_format, no_plots
    from sllm_jax.loading.pretrained import load
    from sllm_jax.reproduce import EXPERIMENTS, page, runner
    from sllm_jax.reproduce import experiment as experiment_of
    from sllm_jax.reproduce.arc import read_files
    from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions
    from sllm_jax.text.long_text import read_text

    out = Path(os.path.expanduser(out))
    given = {"text": text, "questions": questions}
    chosen = {experiment: experiment_of(experiment)} if experiment != ALL else EXPERIMENTS
    if experiment == ALL and not questions:
        chosen = {name: one for name, one in chosen.items() if not one.needs("questions")}
    for name, one in chosen.items():
        for option, value in given.items():
            if one.needs(option) and not value:
                raise SllmError(f"{name} needs {'a text' if option == 'text' else option}; give --{option} FILE")
    check_format(plot_format)
    options = ExperimentOptions(
        max_tokens=max_tokens,
        start_size=start_size,
        recent_size=recent_size,
        recompute_every=recompute_every,
        dense_tokens=dense_tokens,
        lines=lines,
        questions=read_files(questions or []),
        max_questions=max_questions,
        qa_format=qa_format,
        cache_sizes=cache_size or (),
        seed=seed,
    )
    if experiment == ALL:
        page.check_folder(out, chosen)
    else:
        check_absent(out)
    content = "" if text is None else read_text(stdin.as_file(text))
    if not can_plot():
        note(no_plots())
    with progress("loading") as bar:
        loaded, loaded_tokenizer = load(model, dtype, revision, tokenizer, bar, weights)
    names = {"model": model} | ({} if text is None else {"text": str(text)})
    inputs = ExperimentInputs(loaded, loaded_tokenizer, content, options, names)
    if experiment == ALL:
        commands = {name: _command(asked, name, one, out / name) for name, one in chosen.items()}
        with work_folder(out):
            runner.run_all(chosen, inputs, out, commands, plot_format, progress, tell=note)
    else:
        one, command = chosen[experiment], _command(asked, experiment, chosen[experiment], out)
        report = runner.run_experiment(experiment, one.plan(inputs), one, out, command, plot_format, progress)
        print(report.markdown(), end="")
    note(f"wrote {out}")


def _default(option: str) -> object:
    return inspect.signature(reproduce).parameters[option].default


def _command(asked: Mapping[str, object], name: str, experiment: Experiment, out: Path) -> str:
    """The command that makes this experiment alone: the options that were given and that it looks at."""
    words = ["sllm-jax", "reproduce", name]
    for option in (*_EVERYWHERE, *experiment.options):
        value = asked.get(option, [])
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{option.replace('_', '-')}", str(one)]
    return shlex.join([*words, "--out", str(out)])
