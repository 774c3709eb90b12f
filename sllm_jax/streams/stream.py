"""Text in, text out: one endless stream, wrapped for people."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress, silent
from sllm_jax.common.signals import deferred_signals
from sllm_jax.core import decode
from sllm_jax.core.decode import NO_TOKEN
from sllm_jax.core.model import Model, check_finite
from sllm_jax.core.sampling import Sampling, SamplingOptions, sampling_for
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.generation_config import stop_strings, unsupported
from sllm_jax.streams.kv_cache import check_sizes, enable_streaming_llm
from sllm_jax.text.chat import TurnEnd, render_turn, turn_end
from sllm_jax.text.detokenize import Detokenizer, text_lengths
from sllm_jax.text.stop_text import StopText
from sllm_jax.text.tokenizer import control_token_ids, encode, start_ids

RECENT_SIZE = 2000  # as in the paper's demo, or what fits the trained context
LEAST_WINDOW = 16  # recent tokens that a model needs to write text; the default is never smaller
STREAM_MODES = ("streaming", "dense")
_REMEMBERED = 512  # last token ids that the host keeps: context of the next text, and what a stop text may take back


EndReason = Literal["eos", "stop", "length", "context"]


class Stream:
    """One endless text: `feed` reads, `generate` writes, `chat` does both. The model sees sinks and window, no more.

    `mode` "dense" keeps everything instead and ends at the trained context. `steps`: tokens that are written in one
    call of the device, and so printed at once. `control_tokens`: whether a text or message that spells a control token,
    such as `<|im_end|>`, stands for that token; by default it is plain text.
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
        control_tokens: bool = False,
    ) -> None:
        """Begin an empty stream; `recent_size` None is 2000, or what fits the trained context. Raises `SllmError`.

        Warns of what the model's `generation_config.json` asks for and is not supported.
        """
        if tokenizer is None:
            raise SllmError("text needs a tokenizer, and this model has none beside it; name one (--tokenizer)")
        check_stream_mode(mode)
        if not 0 <= seed < 2**32:
            raise SllmError(f"seed must be from 0 to {2**32 - 1}; got {seed}")
        if steps < 1:
            raise SllmError(f"steps must be 1 or more; got {steps}")
        if ignored := unsupported(model.generation_config):
            named = ", ".join(f"{name}={value!r}"[:60] for name, value in ignored.items())
            warnings.warn(f"{named} in generation_config.json is not supported and has no effect here", stacklevel=2)
        if mode == "dense":
            start_size, recent_size = 0, model.config.max_position_embeddings - 1
        self.model, self.tokenizer, self.mode = model, tokenizer, mode
        self._cache = enable_streaming_llm(model, *fit_sizes(model.config, start_size, recent_size))
        self._carry = decode.init_carry(model, self._cache.start_size, self._cache.recent_size, seed)
        self._steps, self._control_tokens = steps, control_tokens
        self._last: deque[int] = deque(maxlen=_REMEMBERED)
        self.tokens_seen = 0  # read and written, evicted ones included
        self.tokens_written = 0
        self.end_reason: EndReason | None = None  # why the last text ended; None before the first and meanwhile
        self._unshown = ""  # text on the stream that an abandoned `generate` has held back
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
    def last_ids(self) -> list[int]:
        """The last token ids of the stream, read and written, at most 512."""
        return list(self._last)

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
        ids = encode(self.tokenizer, text, self.tokens_seen == 0, self._control_tokens)
        self._read(ids, progress)
        self._unshown = ""
        return len(ids)

    def generate(
        self,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Write, in pieces of text as they are made: until an end-of-text token, for `max_tokens`, or for ever.

        `stop`: texts that end it too; they are not shown, and what was written from there on is taken back. One that is
        a control token (`<|im_end|>`) ends the text as an end-of-text token does. The model's own `stop_strings` count
        as well; `ignore_eos` is about end-of-text tokens and these. `options` are those of `sampling`; one that is not
        given is the model's own (generation_config.json), else greedy. `end_reason` says afterwards why it ended.

        The pieces of one call after another join to the text of the stream. After an end of text more is written only
        once something is fed, or with `ignore_eos`.
        """
        return self._begin(TurnEnd((), ()), max_tokens, stop, ignore_eos, **options)

    def chat(
        self,
        message: str,
        system: str | None = None,
        max_tokens: int | None = 1000,
        stop: Sequence[str] = (),
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Answer a message. Earlier turns are on the stream already, as far as they are still visible.

        The answer ends where the chat template ends it, besides what ends `generate`.
        """
        if not message.strip():
            raise SllmError("the message is empty; give some text")
        pieces = self._begin(turn_end(self.tokenizer, system), max_tokens, stop, False, **options)
        first, last = not self._chatting, list(self._last)
        self._read(render_turn(self.tokenizer, message, system, first, last, self._control_tokens))
        self._unshown = ""
        self._chatting = True
        return pieces

    def _begin(
        self,
        end: TurnEnd,
        max_tokens: int | None,
        stop: Sequence[str],
        ignore_eos: bool,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Check everything, then write."""
        check_end(max_tokens, stop)
        chosen = sampling_for(self.model.generation_config, **options)
        own = [] if ignore_eos else stop_strings(self.model.generation_config)
        stop_ids, texts = _stops(self.tokenizer, stop, own)
        ends: dict[int, EndReason] = dict.fromkeys([*end.token_ids, *stop_ids], "stop")
        if not ignore_eos:
            ends |= dict.fromkeys(eos_ids(self.model, self.tokenizer), "eos")
        return self._generate(max_tokens, StopText([*end.texts, *texts]), chosen, ends)

    def _generate(
        self, max_tokens: int | None, stop: StopText, options: Sampling, ends: dict[int, EndReason]
    ) -> Iterator[str]:
        if self.tokens_seen == 0:
            self._read(start_ids(self.tokenizer))
        self._go_on(ends)
        text = Detokenizer(self.tokenizer, list(self._last))
        unshown, self._unshown, self.end_reason = self._unshown, "", None
        try:
            for ids in self._blocks(max_tokens, stop, options, ends):
                piece, unshown = unshown + text.add(ids), ""
                yield stop.add(piece)
            piece, unshown = unshown + text.flush(), ""
            yield stop.add(piece)
            yield stop.rest()
        finally:
            if stop.found:
                self.end_reason = "stop"
                stop.add(text.flush())
                self._take_back(self._tokens_of(stop.surplus))
            else:
                self._unshown = unshown + stop.rest()

    def _go_on(self, ends: dict[int, EndReason]) -> None:
        """After an end that is none of these `ends`, the stream is not at its end any more."""
        if bool(self._carry.done) and ends.get(self._last[-1]) != "eos":
            self._carry = self._carry.replace(done=jnp.zeros_like(self._carry.done))

    def _blocks(
        self, max_tokens: int | None, stop: StopText, options: Sampling, ends: dict[int, EndReason]
    ) -> Iterator[list[int]]:
        """The tokens of each call of the device, until the end; a Ctrl-C waits until a block has been shown."""
        end_ids = _padded(list(ends))
        left = max_tokens
        while not (stop.found or left == 0 or self.full):
            limit = self._steps if left is None else min(self._steps, left)
            with deferred_signals() as deliver:
                ids = self._write(limit, options, end_ids)
            yield ids
            deliver()
            if left is not None:
                left -= len(ids)
            if len(ids) < limit:
                check_finite(self.model, self._carry.logits, f"after {self.tokens_seen} tokens")
                break
        ended = bool(self._carry.done)
        self.end_reason = ends[self._last[-1]] if ended else "context" if self.full else "length"

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
                carry = decode.extend(self.model, self._carry, chunk, count)
                self._carry = jax.block_until_ready(carry)
                self._note(chunk[:count].tolist())
            done += int(count)
            progress(done, len(ids))
            deliver()

    def _write(self, limit: int, options: Sampling, eos: np.ndarray) -> list[int]:
        model = self.model
        if self.mode == "dense":
            limit = min(limit, model.config.max_position_embeddings - self.tokens_seen)
        self._carry, tokens = decode.decode(model, self._carry, options, eos, limit, self._steps)
        ids = [token for token in np.asarray(tokens).tolist() if token >= 0]
        self._note(ids)
        self.tokens_written += len(ids)
        return ids

    def _tokens_of(self, characters: int) -> int:
        """How many tokens make the last `characters` of the text, the one that they cut in two included."""
        lengths = text_lengths(self.tokenizer, list(self._last))
        kept = lengths[-1] - characters
        count = 0
        while count < len(self._last) - 1 and lengths[len(self._last) - count] > kept:
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


def check_stream_mode(mode: str) -> None:
    """Raises `SllmError` unless it is one of `STREAM_MODES`."""
    if mode not in STREAM_MODES:
        raise SllmError(f"mode {mode!r} is not one of {', '.join(STREAM_MODES)}")


def check_end(max_tokens: int | None, stop: Sequence[str]) -> None:
    """Raises `SllmError` unless a text can end in this way."""
    if max_tokens is not None and max_tokens < 1:
        raise SllmError(f"max-tokens must be 1 or more; got {max_tokens}")
    if any(not text for text in stop):
        raise SllmError("a stop text is empty; give some text or leave it out")


def _stops(tokenizer: Any, given: Sequence[str], own: Sequence[str]) -> tuple[list[int], list[str]]:
    """Stop texts, those given and the model's own, as ids of control tokens and as texts.

    A control token has no text, so a text with one amid others can never appear: refused if given, else warned of.
    """
    control = control_token_ids(tokenizer)
    never = [text for text in (*given, *own) if text.strip() not in control and any(name in text for name in control)]
    if refused := [text for text in never if text in given]:
        raise SllmError(
            f"the stop text {refused[0]!r} has a control token in it, which has no text; give the token alone"
        )
    if never:
        warnings.warn(f"stop_strings {never} in generation_config.json can never appear: control tokens", stacklevel=4)
    both = [text for text in (*given, *own) if text not in never]
    ids = [control[text.strip()] for text in both if text.strip() in control]
    return ids, [text for text in both if text.strip() not in control]


def _padded(ids: Sequence[int]) -> np.ndarray:
    """Token ids [N] int32, padded to a multiple of 4 with no token: their number makes few programs."""
    return np.array([*ids, *[NO_TOKEN] * (-len(ids) % 4 if ids else 4)], np.int32)


def eos_ids(model: Model, tokenizer: Any) -> list[int]:
    """The end-of-text tokens: those of the generation config, or else of the config, and the tokenizer's own."""
    files = {"generation_config.json": model.generation_config, "config.json": model.hf_config}
    file = next((file for file, content in files.items() if content.get("eos_token_id") is not None), None)
    named = None if file is None else files[file]["eos_token_id"]
    ids = [one for one in [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id] if one is not None]
    if wrong := [one for one in ids if type(one) is not int]:
        raise SllmError(f"eos_token_id in the model's {file} must be token ids; got {wrong!r:.80}")
    return sorted(set(ids)) or [NO_TOKEN]


def fit_sizes(config: ModelConfig, start_size: int, recent_size: int | None) -> tuple[int, int]:
    """Both sizes of a cache; with `recent_size` None as large as fits the trained context, 2000 at most.

    Warns of a cache that is larger than the trained context or the model's own sliding window. Raises `SllmError` for
    sizes that no cache can have.
    """
    context, window = config.max_position_embeddings, config.sliding_window
    check_sizes(start_size, 0 if recent_size is None else recent_size)
    if recent_size is None:
        recent_size = min(RECENT_SIZE, context - start_size - 1, (window or context) - 1)
        if recent_size < min(LEAST_WINDOW, context - 1):
            raise SllmError(
                f"a start_size of {start_size} leaves {max(recent_size, 0)} recent tokens of the trained context of "
                f"{context}; give a smaller start_size, or a recent_size"
            )
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
