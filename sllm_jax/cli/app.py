"""The commands and their common options."""

from __future__ import annotations

from typing import Annotated

import typer

from sllm_jax.cli.benchmark import benchmark
from sllm_jax.cli.chat import chat
from sllm_jax.cli.convert import convert
from sllm_jax.cli.demo import demo
from sllm_jax.cli.generate import generate
from sllm_jax.cli.models import models
from sllm_jax.cli.perplexity import perplexity
from sllm_jax.cli.program_cache import keep_programs
from sllm_jax.cli.reproduce import reproduce
from sllm_jax.cli.train import train
from sllm_jax.common.version import __version__

ALIASES = {"max-new-tokens": "max-tokens", "temp": "temperature"}  # names in other programs
EXIT_CODES = """\
Exit codes: 0 success; 1 output pipe closed; 2 bad input, explained in one sentence; 130 Ctrl-C; 143 SIGTERM."""


def option_name(typed: str) -> str:
    """The canonical name of an option."""
    name = typed.replace("_", "-")
    return ALIASES.get(name, name)


app = typer.Typer(
    name="sllm-jax",
    no_args_is_help=True,
    epilog=EXIT_CODES,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": option_name,
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
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    program_cache: Annotated[
        bool, typer.Option(help="Cache compiled programs in ~/.cache/sllm-jax to speed up the next start.")
    ] = True,
) -> None:
    """Endless text from language models: StreamingLLM (attention sinks) in JAX.

    `sllm-jax COMMAND --help` explains a command. Options have alternative spellings: underscores work too (--start_size
    is --start-size), --max-new-tokens is --max-tokens, --temp is --temperature.
    """
    if program_cache:
        keep_programs()


for command in (demo, generate, chat, perplexity, reproduce, benchmark, train, convert, models):
    app.command()(command)
