"""The commands and what they have in common."""

from __future__ import annotations

from typing import Annotated

import typer

from sllm_jax.cli.benchmark import benchmark
from sllm_jax.cli.convert import convert
from sllm_jax.cli.models import models
from sllm_jax.cli.perplexity import perplexity
from sllm_jax.cli.program_cache import keep_programs
from sllm_jax.cli.reproduce import reproduce
from sllm_jax.cli.text import chat, generate
from sllm_jax.cli.train import train
from sllm_jax.version import __version__

app = typer.Typer(
    name="sllm-jax",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(f"sllm-jax {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
    program_cache: Annotated[
        bool, typer.Option(help="Keep compiled programs in ~/.cache/sllm-jax: the next start is then faster.")
    ] = True,
) -> None:
    """Endless text from language models: StreamingLLM (attention sinks) in JAX.

    --start-size and --start_size are the same option, and so on. `sllm-jax COMMAND --help` explains a command.
    """
    if program_cache:
        keep_programs()


for command in (generate, chat, perplexity, reproduce, benchmark, train, convert, models):
    app.command()(command)
