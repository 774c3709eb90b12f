"""Text in, text out: one endless stream, wrapped for people."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import jax
import numpy as np

from sllm_jax import decode
from sllm_jax.chat import render_turn, stop_texts
from sllm_jax.decode import NO_TOKEN
from sllm_jax.detokenize import Detokenizer
from sllm_jax.errors import SllmError
from sllm_jax.kv_cache import check_sizes, enable_streaming_llm
from sllm_jax.model import Model
from sllm_jax.models.config import ModelConfig
from sllm_jax.progress import Progress, silent
from sllm_jax.sampling import Sampling, SamplingOptions, sampling_for
from sllm_jax.signals import deferred_signals
from sllm_jax.stop_text import StopText
from sllm_jax.tokenizer import decode as decode_text
from sllm_jax.tokenizer import encode, start_ids

RECENT_SIZE = 2000  # as in the paper's demo, or what fits the trained context
MODES = ("streaming", "dense")
_REMEMBERED = 512  # last token ids that the host keeps: context of the next text, and what a stop text may take back


class Stream:
    """One endless text: `feed` reads, `generate` writes, `chat` does both. The model sees sinks and window, no more.

    `mode` "dense" keeps everything instead and ends at the trained context. `steps`: tokens that are written in one
    call of the device, and so printed at once.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        start_size: int = 4,
        recent_size: int | None = None,
        mode: str = "streaming",
        seed: int = 0,
        steps: int = 8,
    ) -> None:
        """Begin an empty stream; `recent_size` None is 2000, or what fits the trained context. Raises `SllmError`."""
        if tokenizer is None:
            raise SllmError("text needs a tokenizer, and this model has none beside it; name one (--tokenizer)")
        check_mode(mode)
        if not 0 <= seed < 2**32:
            raise SllmError(f"seed must be from 0 to {2**32 - 1}; got {seed}")
        if mode == "dense":
            start_size, recent_size = 0, model.config.max_position_embeddings - 1
        self.model, self.tokenizer, self.mode = model, tokenizer, mode
        self._cache = enable_streaming_llm(model, *fit_sizes(model.config, start_size, recent_size))
        self._carry = decode.init_carry(model.module, self._cache.start_size, self._cache.recent_size, seed)
        self._steps = steps
        self._last: deque[int] = deque(maxlen=_REMEMBERED)
        self.tokens_seen = 0  # read and written, evicted ones included
        self.tokens_written = 0
        self._chatting = False

    @property
    def cache_size(self) -> int:
        """Tokens that the cache can hold."""
        return self._cache.cache_size

    @property
    def cache_in_use(self) -> int:
        """Tokens that it holds."""
        return int(self._carry.state.filled)

    @property
    def full(self) -> bool:
        """Whether a dense stream has come to the end of its trained context."""
        return self.mode == "dense" and self.tokens_seen >= self.model.config.max_position_embeddings

    def feed(self, text: str, progress: Progress = silent) -> int:
        """Read some text, at the start of the stream with the tokens that begin one (BOS); how many tokens it was.

        `progress` hears how many tokens of how many are read.
        """
        if not text:
            raise SllmError("the text to read is empty; give some, or write without a prompt")
        ids = encode(self.tokenizer, text, start=self.tokens_seen == 0)
        self._read(ids, progress)
        return len(ids)

    def generate(
        self,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Write, in pieces of text as they are made: until an end-of-text token, for `max_tokens`, or for ever.

        `stop`: texts that end it too; they are not shown, and what was written from there on is taken back. `options`
        are those of `sampling`; one that is not given is the model's own (generation_config.json), else greedy.
        """
        check_end(max_tokens, stop)
        chosen = sampling_for(self.model.generation_config, **options)
        eos = np.array([NO_TOKEN] if ignore_eos else eos_ids(self.model, self.tokenizer), np.int32)
        return self._generate(max_tokens, StopText(stop), chosen, eos)

    def chat(
        self,
        message: str,
        system: str | None = None,
        max_tokens: int | None = 1000,
        stop: Sequence[str] = (),
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Answer a message. Earlier turns are on the stream already, as far as they are still visible."""
        if not message.strip():
            raise SllmError("the message is empty; give some text")
        pieces = self.generate(max_tokens, [*stop_texts(self.tokenizer), *stop], **options)
        self._read(render_turn(self.tokenizer, message, system, not self._chatting, list(self._last)))
        self._chatting = True
        return pieces

    def _generate(self, max_tokens: int | None, stop: StopText, options: Sampling, eos: np.ndarray) -> Iterator[str]:
        if self.tokens_seen == 0:
            self._read(start_ids(self.tokenizer))
        text = Detokenizer(self.tokenizer, list(self._last))
        try:
            for ids in self._blocks(max_tokens, stop, options, eos):
                yield stop.add(text.add(ids))
            yield stop.add(text.flush())
            yield stop.rest()
        finally:
            if stop.found:
                stop.add(text.flush())
                self._take_back(self._tokens_of(stop.surplus))

    def _blocks(
        self, max_tokens: int | None, stop: StopText, options: Sampling, eos: np.ndarray
    ) -> Iterator[list[int]]:
        """The tokens of each call of the device, until the end; a Ctrl-C waits until a block has been shown."""
        left, ended = max_tokens, False
        while not (ended or stop.found or left == 0 or self.full):
            limit = self._steps if left is None else min(self._steps, left)
            with deferred_signals() as deliver:
                ids = self._write(limit, options, eos)
            yield ids
            deliver()
            left, ended = None if left is None else left - len(ids), len(ids) < limit

    def _read(self, ids: np.ndarray, progress: Progress = silent) -> None:
        vocab_size = self.model.config.vocab_size
        if len(ids) and int(ids.max()) >= vocab_size:
            raise SllmError(
                f"token id {int(ids.max())} is outside the model's vocabulary of {vocab_size}; "
                "this tokenizer belongs to another model (--tokenizer)"
            )
        context = self.model.config.max_position_embeddings
        if self.mode == "dense" and self.tokens_seen + len(ids) > context:
            raise SllmError(
                f"dense attention ends at the trained context of {context} tokens, and this text would make it "
                f"{self.tokens_seen + len(ids)}; shorten it, or stream"
            )
        done = 0
        for chunk, count in decode.chunks(ids):
            with deferred_signals() as deliver:
                carry = decode.extend(self.model.module, self.model.params, self._carry, chunk, count)
                self._carry = jax.block_until_ready(carry)
                self._note(chunk[:count].tolist())
            done += int(count)
            progress(done, len(ids))
            deliver()

    def _write(self, limit: int, options: Sampling, eos: np.ndarray) -> list[int]:
        model = self.model
        if self.mode == "dense":
            limit = min(limit, model.config.max_position_embeddings - self.tokens_seen)
        self._carry, tokens = decode.decode(
            model.module, model.params, self._carry, options, eos, np.int32(limit), self._steps
        )
        ids = [token for token in np.asarray(tokens).tolist() if token != NO_TOKEN]
        self._note(ids)
        self.tokens_written += len(ids)
        return ids

    def _tokens_of(self, characters: int) -> int:
        """How many tokens make the last `characters` of the text, the one that they cut in two included."""
        ids = list(self._last)
        kept = len(decode_text(self.tokenizer, ids)) - characters
        count = 0
        while count < len(ids) - 1 and len(decode_text(self.tokenizer, ids[: len(ids) - count])) > kept:
            count += 1
        return count

    def _take_back(self, count: int) -> None:
        """Remove the last `count` tokens and read the one before them again, for what may come next depends on it.

        What a full cache has evicted meanwhile does not come back.
        """
        if count == 0:
            return
        with deferred_signals() as deliver:
            ids = list(self._last)[: len(self._last) - count]
            filled = self.cache_in_use
            self.tokens_seen -= count + 1
            self.tokens_written -= count
            sinks = min(self._cache.start_size, self.tokens_seen)
            state = self._cache.evict_range(self._carry.state, max(filled - count - 1, sinks), filled)
            self._carry = self._carry.replace(state=state)
            self._last = deque(ids[:-1], maxlen=_REMEMBERED)
            self._read(np.array(ids[-1:], np.int32))
        deliver()

    def _note(self, ids: list[int]) -> None:
        self._last.extend(ids)
        self.tokens_seen += len(ids)


def check_mode(mode: str) -> None:
    """Raises `SllmError` unless it is one of `MODES`."""
    if mode not in MODES:
        raise SllmError(f"mode {mode!r} is not one of {', '.join(MODES)}")


def check_end(max_tokens: int | None, stop: Sequence[str]) -> None:
    """Raises `SllmError` unless a text can end in this way."""
    if max_tokens is not None and max_tokens < 1:
        raise SllmError(f"max-tokens must be 1 or more; got {max_tokens}")
    if any(not text for text in stop):
        raise SllmError("a stop text is empty; give some text or leave it out")


def eos_ids(model: Model, tokenizer: Any) -> list[int]:
    """The end-of-text tokens: those of the generation config, or else of the config, and the tokenizer's own."""
    named = model.generation_config.get("eos_token_id", model.hf_config.get("eos_token_id"))
    ids = [one for one in [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id] if one is not None]
    if wrong := [one for one in ids if not isinstance(one, int)]:
        raise SllmError(f"eos_token_id in the model's generation_config.json must be token ids; got {wrong}")
    return sorted(set(ids)) or [NO_TOKEN]


def fit_sizes(config: ModelConfig, start_size: int, recent_size: int | None) -> tuple[int, int]:
    """Both sizes of a cache; with `recent_size` None as large as fits the trained context, 2000 at most.

    Warns of a cache that is larger than the trained context or the model's own sliding window. Raises `SllmError` for
    sizes that no cache can have.
    """
    context, window = config.max_position_embeddings, config.sliding_window
    if recent_size is None:
        recent_size = max(min(RECENT_SIZE, context - start_size - 1, (window or context) - 1), 0)
    check_sizes(start_size, recent_size)
    if start_size + recent_size == 0:
        raise SllmError("a cache of 0 tokens keeps nothing; give a larger start_size or recent_size")
    if start_size + recent_size + 1 > context:
        warnings.warn(
            f"a step attends to {start_size + recent_size + 1} tokens, and the model was trained on {context}; "
            "a smaller cache gives better text",
            stacklevel=3,
        )
    elif window and recent_size + 1 > window:
        warnings.warn(
            f"the model sees the sinks and, with its sliding window, the last {window} tokens; a recent_size above "
            f"{window - 1} takes memory and shows it nothing more",
            stacklevel=3,
        )
    return start_size, recent_size
