"""A chat on one stream, and the commands that people type in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import jax

from sllm_jax.chat import ASSISTANT
from sllm_jax.cli.console import label, note
from sllm_jax.cli.writing import Speed, show, summary
from sllm_jax.errors import SllmError
from sllm_jax.int8 import is_quantized
from sllm_jax.signals import deferred_signals, handled_by, raise_stopped

if TYPE_CHECKING:
    from sllm_jax.sampling import SamplingOptions
    from sllm_jax.stream import Stream

COMMANDS = {
    "/help": "list these commands",
    "/reset": "begin again with an empty stream and the same seed",
    "/system TEXT": "begin again, and tell the model TEXT before the first message",
    "/stats": "show tokens, speed, cache and model",
    "/exit": "end the chat, as Ctrl-D does",
}
NOTES = "A message that begins with a slash is written with two: //etc. Alt-Enter begins a new line."


class Conversation:
    """A stream, what it is told first, and how it answers."""

    def __init__(
        self,
        model: str,
        begin: Callable[[], Stream],
        system: str | None,
        max_tokens: int,
        stop: Sequence[str],
        chosen: SamplingOptions,
    ) -> None:
        """`model` is its name; `begin` makes an empty stream."""
        self._model, self._begin, self.system = model, begin, system
        self._max_tokens, self._stop, self._chosen = max_tokens, stop, chosen
        self.reset()

    def reset(self) -> None:
        """Begin again with an empty stream."""
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
    """Answer listed or piped messages, until there are no more or the stream is full; Ctrl-C ends the process."""
    for message in _awaited(messages):
        conversation.answer(message)
        if conversation.stream.full:
            return


def talk(conversation: Conversation, messages: Iterable[str]) -> None:
    """Answer what somebody types, commands included. Ctrl-C ends an answer; an error does not end the chat."""
    for message in _awaited(messages):
        with suppress(KeyboardInterrupt):
            if message.strip() and not respond(conversation, message.strip()):
                return
        if conversation.stream.full:
            return


def _awaited(messages: Iterable[str]) -> Iterator[str]:
    """The messages; while one is waited for, a signal ends the waiting."""
    iterator = iter(messages)
    while True:
        with handled_by(raise_stopped):
            message = next(iterator, None)
        if message is None:
            return
        yield message


def respond(conversation: Conversation, message: str) -> bool:
    """Answer a message or do a command; whether the chat goes on."""
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
        note("a new stream: empty, with the same seed, so the same messages get the same answers")
    elif command == "/system" and text:
        conversation.reset()
        conversation.system = text
        note("a new stream that begins with this system text")
    elif command == "/system":
        note(conversation.system or "there is no system text; /system TEXT sets one")
    elif command == "/stats":
        note(f"{summary(conversation.stream, conversation.speed)}\n{conversation.about()}")
    else:
        note(f"there is no command {command}; there are {', '.join(COMMANDS)}, and //... sends a message with a slash")
    return True


def _without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """The answer without the white space before it."""
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        begun = begun or bool(shown)
        yield shown
