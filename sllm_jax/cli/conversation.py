"""A chat on one stream, and its interactive commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import jax

from sllm_jax.cli.console import label, note
from sllm_jax.cli.writing import Speed, show, summary
from sllm_jax.common.errors import SllmError
from sllm_jax.common.signals import deferred_signals, handled_by, raise_stopped
from sllm_jax.core.int8 import is_quantized
from sllm_jax.text.chat import ASSISTANT

if TYPE_CHECKING:
    from sllm_jax.core.sampling import SamplingOptions
    from sllm_jax.streams.stream import Stream

COMMANDS = {
    "/help": "list these commands",
    "/reset": "start over with an empty stream and the same seed",
    "/system TEXT": "start over with TEXT as the system text",
    "/stats": "show tokens, speed, cache and model",
    "/exit": "end the chat, like Ctrl-D",
}
NOTES = "To send a message that begins with a slash, double it: //etc. Alt-Enter starts a new line."


class Conversation:
    """A stream, its system text, and the options of its answers."""

    def __init__(
        self,
        model: str,
        begin: Callable[[], Stream],
        system: str | None,
        max_tokens: int,
        stop: Sequence[str],
        chosen: SamplingOptions,
    ) -> None:
        """`model` is a name for display; `begin` returns an empty stream."""
        self._model, self._begin, self.system = model, begin, system
        self._max_tokens, self._stop, self._chosen = max_tokens, stop, chosen
        self.reset()

    def reset(self) -> None:
        """Start over with an empty stream."""
        self.stream = self._begin()
        self.speed = Speed(self.stream)

    def answer(self, message: str) -> None:
        """Print the answer to a message. Raises `SllmError` for a message that cannot be read."""
        with deferred_signals(raise_stopped) as check:
            pieces = self.stream.chat(message, self.system, self._max_tokens, self._stop, **self._chosen)
            label(ASSISTANT, end=" " if sys.stdout.isatty() else "\n")
            show(self.speed.watch(_without_leading_space(pieces)), check)

    def about(self) -> str:
        """One line: model, dtype, device, cache."""
        model = self.stream.model
        device = next(iter(jax.tree.leaves(model.params)[0].devices()))
        dtype = f"{model.dtype.name}{', int8 weights' if is_quantized(model.params) else ''}"
        return f"{self._model}, {dtype}, on {device.device_kind}, a cache of {self.stream.cache_size} tokens"


def answer_all(conversation: Conversation, messages: Iterable[str]) -> None:
    """Answer messages from a file or pipe until the last one, or until the stream is full; Ctrl-C ends the process."""
    for message in _awaited(messages):
        conversation.answer(message)
        if conversation.stream.full:
            return


def talk(conversation: Conversation, messages: Iterable[str]) -> None:
    """Answer typed messages and commands. Ctrl-C stops an answer; errors do not end the chat."""
    for message in _awaited(messages):
        with suppress(KeyboardInterrupt):
            if message.strip() and not respond(conversation, message.strip()):
                return
        if conversation.stream.full:
            return


def _awaited(messages: Iterable[str]) -> Iterator[str]:
    """The messages; a signal interrupts waiting for the next one."""
    iterator = iter(messages)
    while True:
        with handled_by(raise_stopped):
            message = next(iterator, None)
        if message is None:
            return
        yield message


def respond(conversation: Conversation, message: str) -> bool:
    """Answer a message or run a command; returns whether the chat continues."""
    try:
        if not message.startswith("/"):
            conversation.answer(message)
        elif message.startswith("//"):
            conversation.answer(message[1:])
        else:
            return _do(conversation, message)
    except SllmError as error:
        note(f"error: {error}")
    return True


def _do(conversation: Conversation, line: str) -> bool:
    command, text = (*line.strip().split(maxsplit=1), "")[:2]
    if command == "/exit":
        return False
    if command == "/help":
        note("\n".join([*(f"{name:14}{what}" for name, what in COMMANDS.items()), NOTES]))
    elif command == "/reset":
        conversation.reset()
        note("started over with the same seed: the same messages get the same answers")
    elif command == "/system" and text:
        conversation.reset()
        conversation.system = text
        note("started over with this system text")
    elif command == "/system":
        note(conversation.system or "there is no system text; /system TEXT sets one")
    elif command == "/stats":
        note(f"{summary(conversation.stream, conversation.speed)}\n{conversation.about()}")
    else:
        note(f"there is no command {command}; expected {', '.join(COMMANDS)}, or //... for a message with a slash")
    return True


def _without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """The answer without leading white space."""
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        begun = begun or bool(shown)
        yield shown
