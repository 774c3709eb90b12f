"""The command line: `sllm-jax generate | chat | perplexity | convert`. Each command only calls the library."""

from __future__ import annotations

import sys

from sllm_jax.cli.app import app
from sllm_jax.cli.console import note, print_warnings
from sllm_jax.errors import SllmError


def main() -> None:
    """Run a command. Bad input is one sentence and exit code 2, never a traceback."""
    print_warnings()
    try:
        app()
    except SllmError as error:
        note(f"error: {error}")
        sys.exit(2)
