"""The command line: `sllm-jax COMMAND`. Each command only calls the library."""

from __future__ import annotations

import io
import os
import sys

from sllm_jax.common.signals import leave_on_signals


def main() -> None:
    """Run a command. Bad input gives one sentence and exit code 2, never a traceback."""
    leave_on_signals()
    from sllm_jax.cli.app import app  # imports typer and rich, which takes a moment
    from sllm_jax.cli.console import note, print_warnings
    from sllm_jax.common.errors import SllmError

    if sys.stderr is None:  # closed; print would write to standard output instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 stays open
    print_warnings()
    if sys.stdout is None:
        note("error: standard output is closed; connect a terminal, a pipe or a file, such as /dev/null")
        sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # characters that the terminal lacks become question marks
    try:
        app()
    except SllmError as error:
        note(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        note(f"error: the system does not allow it: {error}")
        sys.exit(2)
