"""Sources of chat messages: a terminal, a pipe, or a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sllm_jax.cli import stdin
from sllm_jax.cli.console import label, note
from sllm_jax.common.errors import SllmError
from sllm_jax.text.chat import USER

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


def at_terminal() -> bool:
    """Whether input and output are a terminal."""
    ends = (sys.stdout, sys.stderr)
    return sys.stdin is not None and sys.stdin.isatty() and any(end is not None and end.isatty() for end in ends)


def typed() -> Iterator[str]:
    """Messages from a line editor with history, until Ctrl-D, or Ctrl-C on an empty line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import HTML
    from prompt_toolkit.output import create_output
    from prompt_toolkit.utils import is_dumb_terminal

    session: PromptSession[str] = PromptSession(
        HTML(f"\n<b>{USER}</b> "),
        multiline=True,
        key_bindings=_keys(),
        enable_suspend=True,
        reserve_space_for_menu=0,
        output=None if is_dumb_terminal() else create_output(always_prefer_tty=True),
    )
    while True:
        try:
            yield session.prompt()
        except (EOFError, KeyboardInterrupt):
            return


def piped() -> Iterator[str]:
    """The lines of standard input, shown as they arrive. A line that is not UTF-8 is skipped with a note.

    Raises `SllmError` immediately if standard input is closed, and at its end if there was no message.
    """
    return _messages(stdin.lines())


def from_prompts(conversations: Iterable[Iterable[str]]) -> Iterator[str]:
    """The messages of all conversations, each shown before its answer."""
    for turns in conversations:
        for message in turns:
            _show(message)
            yield message


def _messages(lines: Iterator[bytes]) -> Iterator[str]:
    count = 0
    for number, line in enumerate(lines, 1):
        try:
            message = stdin.text_of(line)
        except SllmError as error:
            note(f"skipped line {number}: {error}")
            continue
        if message.strip():
            count += 1
            _show(message)
            yield message
    if not count:
        raise SllmError("standard input has no message; give one on each line")


def _show(message: str) -> None:
    label(USER)
    note(message)


def _keys() -> KeyBindings:
    """Enter sends, Alt-Enter starts a new line, Ctrl-C discards the input or ends the chat."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def discard(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys
