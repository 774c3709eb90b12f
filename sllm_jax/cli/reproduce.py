"""`reproduce`: one of the paper's experiments on a model and a text of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sllm_jax.bundle import DEFAULT_MODEL
from sllm_jax.cli import options as o
from sllm_jax.cli.console import leave_at_once_on_ctrl_c, note, progress


def reproduce(
    experiment: Annotated[
        str,
        Argument(
            help="fig2: attention on the first positions. fig3: perplexity along a long text, in four modes. "
            "table1: sinks, line breaks in their place, none, re-computation. table2: number of sinks. "
            "table6: size of the cache. streameval: questions about earlier lines of an endless stream.",
            metavar="EXPERIMENT",
        ),
    ],
    out: Annotated[Path, Option(help="The folder to write; it must not exist yet.")],
    text: Annotated[
        Path | None, Option(help="A text that the model was not trained on, UTF-8; streameval makes its own.")
    ] = None,
    model: o.Model = DEFAULT_MODEL,
    max_tokens: Annotated[
        int | None, Option(help="Use this many tokens of the text at most.", show_default="the whole text")
    ] = None,
    start_size: o.StartSize = 4,
    recent_size: o.RecentSize = None,
    recompute_every: Annotated[
        int | None,
        Option(help="Re-compute one token in so many.", show_default="about 2000 in all", rich_help_panel=o.CACHE),
    ] = None,
    dense_tokens: Annotated[
        int | None,
        Option(
            help="Read this many tokens with dense attention.",
            show_default="4 trained contexts",
            rich_help_panel=o.CACHE,
        ),
    ] = None,
    revision: o.Revision = None,
    tokenizer: o.Tokenizer = None,
    dtype: o.Dtype = None,
    lines: Annotated[
        int | None, Option(help="Lines of the stream of streameval.", show_default="500", rich_help_panel=o.CACHE)
    ] = None,
    seed: Annotated[int, Option(help="Of the values in streameval; nothing else is random.")] = 0,
) -> None:
    """Reproduce an experiment of the paper.

    Writes a new folder with the figures (EXPERIMENT.csv), the plot (.png) and the table with its settings (.md), and
    prints the table. fig2 looks at no cache options.
    """
    from sllm_jax.errors import SllmError
    from sllm_jax.files import new_folder, remove_unfinished
    from sllm_jax.loading import load
    from sllm_jax.long_text import read_text
    from sllm_jax.reproduce import WITHOUT_TEXT, subject
    from sllm_jax.reproduce import experiment as experiment_of
    from sllm_jax.reproduce.report import check_plots

    run = experiment_of(experiment)
    check_plots()
    options = subject.Options(max_tokens, start_size, recent_size, recompute_every, dense_tokens, lines, seed)
    if text is None and experiment not in WITHOUT_TEXT:
        raise SllmError(f"{experiment} needs a text; give --text FILE")
    content = "" if text is None else read_text(text)
    leave_at_once_on_ctrl_c(lambda: remove_unfinished(out))
    with new_folder(out) as folder:
        with progress("loading") as bar:
            loaded, loaded_tokenizer = load(model, dtype, revision, tokenizer, bar)
        names = {"model": model} | ({} if text is None else {"text": str(text)})
        with progress(experiment) as bar:
            report = run(subject.Subject(loaded, loaded_tokenizer, content, options, names, bar))
        report.write(folder, experiment)
    print(report.markdown(), end="")
    note(f"wrote {out}")
