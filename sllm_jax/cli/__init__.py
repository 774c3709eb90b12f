"""The command line: `sllm-jax generate | chat | perplexity | convert`. Each command only calls the library."""

from __future__ import annotations

import os
import sys

from sllm_jax.cli.app import app
from sllm_jax.cli.console import note, print_warnings
from sllm_jax.errors import SllmError


def main() -> None:
    """Run a command. Bad input is one sentence and exit code 2, Ctrl-C is exit code 130; neither is a traceback."""
    print_warnings()
    try:
        app()
    except SllmError as error:
        note(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has gone, as in `sllm-jax generate | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
