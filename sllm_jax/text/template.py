"""Chat template rendering with limits on time, memory and size.

A template is a program written by the author of the checkpoint. The sandbox of `transformers` restricts what it can
access, but not its run time or memory, and no code in the same process can interrupt `'a' * 10**10`. Templates are
therefore rendered in a subprocess that can be killed. It starts with the first conversation, which takes about a
second; after that a turn takes less than a millisecond.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from sllm_jax.common.errors import SllmError
from sllm_jax.common.foreign import foreign

SECONDS = 10  # time limit of one rendering
START_SECONDS = 120  # time limit for starting the process; generous, for busy machines
_PROGRAM = Path(__file__).with_name("template_process.py")


def render(tokenizer: Any, messages: list[dict[str, str]], prompt: bool) -> str:
    """The messages rendered as text, as by `tokenizer.apply_chat_template`; `prompt` adds the generation prompt.

    Raises `SllmError` if the template refuses the messages, or exceeds the limits on time or memory.
    """
    roles = ", ".join(message["role"] for message in messages)
    with foreign("the chat template", "use another tokenizer (--tokenizer)"):
        request = {
            **tokenizer.special_tokens_map,
            "conversations": [messages],
            "chat_template": tokenizer.get_chat_template(),
            "add_generation_prompt": prompt,
        }
        line = json.dumps(request).encode() + b"\n"
    answer = _ask(line)
    if "text" not in answer:
        raise SllmError(f"the chat template refuses a conversation of {roles}: {answer['error']}")
    return answer["text"]


_running: list[subprocess.Popen[bytes]] = []  # at most one


def _ask(line: bytes) -> dict[str, Any]:
    """Send a request to the process, starting it if needed. Kill a process that does not answer."""
    if not _running:
        _running.append(_start())
    try:
        requests, answers = _pipes(_running[0])
        requests.write(line)
        requests.flush()
        return _answer(answers, SECONDS)
    except TimeoutError:
        stop()
        raise SllmError(f"the chat template takes more than {SECONDS} s; use another tokenizer (--tokenizer)") from None
    except (OSError, EOFError, ValueError):
        stop()
        raise SllmError("the chat template exceeds the memory limit; use another tokenizer (--tokenizer)") from None
    except BaseException:  # a late answer must not be taken for the next one
        stop()
        raise


def _start() -> subprocess.Popen[bytes]:
    # -P keeps the program's folder, which is part of this package, off the module search path.
    process = subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        _answer(_pipes(process)[1], START_SECONDS)
    except BaseException as error:
        _end(process)
        if isinstance(error, OSError | EOFError | ValueError):
            raise SllmError("the process that renders chat templates does not start; try again") from error
        raise
    return process


def _answer(answers: IO[bytes], seconds: float) -> dict[str, Any]:
    """The next answer. Raises TimeoutError, or EOFError if the process has ended."""
    if not select.select([answers], [], [], seconds)[0]:
        raise TimeoutError
    if not (line := answers.readline()).endswith(b"\n"):
        raise EOFError
    return json.loads(line)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@atexit.register
def stop() -> None:
    """End the process if it is running; the next conversation starts a new one."""
    while _running:
        _end(_running.pop())
