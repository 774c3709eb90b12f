"""The high-level API: one endless stream of text."""

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
from sllm_jax.core.kv_state import check_sizes
from sllm_jax.core.model import Model, check_finite
from sllm_jax.core.sampling import Sampling, SamplingOptions, sampling_for
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.generation_config import stop_strings, unsupported_keys
from sllm_jax.streams.kv_cache import enable_streaming_llm
from sllm_jax.text.chat import TurnEnd, render_turn, turn_end
from sllm_jax.text.detokenize import Detokenizer, text_lengths
from sllm_jax.text.stop_text import StopText
from sllm_jax.text.tokenizer import control_token_ids, encode, start_ids

RECENT_SIZE = 2000  # default of the paper's demo; less if the trained context is smaller
LEAST_WINDOW = 16  # smallest default window; models need about this many tokens to write text
STREAM_MODES = ("streaming", "dense")
_REMEMBERED = 512  # token ids kept on the host: context for detokenization, and the reach of a stop text


EndReason = Literal["eos", "stop", "length", "context"]


class Stream:
    """One endless text: `feed` reads, `generate` writes, `chat` does both. The model sees only sinks and window.

    Mode "dense" keeps everything instead and ends at the trained context. `steps` is the number of tokens generated per
    device call, which arrive together. `control_tokens` makes a spelled control token, such as `<|im_end|>`, stand for
    that token; by default it is plain text.
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
        """Begin an empty stream. `recent_size` defaults to 2000, or to what fits the trained context.

        Raises `SllmError` for invalid arguments. Warns of options in `generation_config.json` that are not supported.
        """
        if tokenizer is None:
            raise SllmError("text needs a tokenizer, and this model has none; name one (--tokenizer)")
        check_stream_mode(mode)
        if not 0 <= seed < 2**32:
            raise SllmError(f"seed must be from 0 to {2**32 - 1}; got {seed}")
        if steps < 1:
            raise SllmError(f"steps must be 1 or more; got {steps}")
        if ignored := unsupported_keys(model.generation_config):
            named = ", ".join(f"{name}={value!r}"[:60] for name, value in ignored.items())
            warnings.warn(f"{named} in generation_config.json is not supported and is ignored", stacklevel=2)
        if mode == "dense":
            start_size, recent_size = 0, model.config.max_position_embeddings - 1
        self.model, self.tokenizer, self.mode = model, tokenizer, mode
        self._cache = enable_streaming_llm(model, *fit_sizes(model.config, start_size, recent_size))
        self._carry = decode.init_carry(model, self._cache.start_size, self._cache.recent_size, seed)
        self._steps, self._control_tokens = steps, control_tokens
        self._last: deque[int] = deque(maxlen=_REMEMBERED)
        self.tokens_seen = 0  # read and written, including evicted ones
        self.tokens_written = 0
        self.end_reason: EndReason | None = None  # why the last text ended; None until then and while generating
        self._unshown = ""  # text of the stream that an abandoned `generate` held back
        self._chatting = False

    @property
    def cache_size(self) -> int:
        """The number of tokens that the cache can hold."""
        return self._cache.cache_size

    @property
    def cache_in_use(self) -> int:
        """The number of tokens in the cache."""
        return int(self._carry.state.filled)

    @property
    def last_ids(self) -> list[int]:
        """The last token ids of the stream, both read and written, at most 512."""
        return list(self._last)

    @property
    def full(self) -> bool:
        """Whether a dense stream has reached the end of the trained context."""
        return self.mode == "dense" and self.tokens_seen >= self.model.config.max_position_embeddings

    def feed(self, text: str, progress: Progress = silent) -> int:
        """Read a text and return its number of tokens. At the start of the stream, BOS is added if the tokenizer does.

        `progress` is called as progress(tokens read, tokens). Raises `SllmError` if the text is empty, cannot be
        encoded, or does not fit a dense stream.
        """
        if not text:
            raise SllmError("the text is empty; give some text, or generate without a prompt")
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
        """Generate text in pieces, until an end-of-text token, a stop text, `max_tokens`, or forever.

        `stop` texts are not returned, and the tokens from there on are removed from the stream. A stop text that is a
        control token (`<|im_end|>`) acts like an end-of-text token. The model's own `stop_strings` apply too.
        `ignore_eos` ignores end-of-text tokens and the model's `stop_strings`. `options` are those of `sampling`; the
        defaults come from generation_config.json, else decoding is greedy. `end_reason` tells why the text ended.

        The pieces of consecutive calls join to the text of the stream. After an end of text, more is generated only
        once something is fed, or with `ignore_eos`. Raises `SllmError` for invalid options.
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
        """Answer a message, in pieces. Earlier turns are part of the stream, unless they were evicted.

        The answer ends where the chat template ends it, or for any reason that ends `generate`. Raises `SllmError` for
        an empty message, invalid options, or a message that the chat template refuses.
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
        """Check all options, then return the generator."""
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
        """Clear `done` unless the stream ended at one of the end-of-text tokens in `ends`."""
        if bool(self._carry.done) and ends.get(self._last[-1]) != "eos":
            self._carry = self._carry.replace(done=jnp.zeros_like(self._carry.done))

    def _blocks(
        self, max_tokens: int | None, stop: StopText, options: Sampling, ends: dict[int, EndReason]
    ) -> Iterator[list[int]]:
        """The tokens of each device call until the end. A Ctrl-C is deferred until the block has been consumed."""
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
                f"dense attention ends at the trained context of {context} tokens, and this text would end at "
                f"{self.tokens_seen + len(ids)}; shorten it, or use mode streaming"
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
        """The number of tokens that cover the last `characters` of the text, including a partly covered one."""
        lengths = text_lengths(self.tokenizer, list(self._last))
        kept = lengths[-1] - characters
        count = 0
        while count < len(self._last) - 1 and lengths[len(self._last) - count] > kept:
            count += 1
        return count

    def _take_back(self, count: int) -> None:
        """Remove the last `count` tokens, then read the token before them again to restore its logits.

        Tokens that a full cache has evicted in the meantime do not come back.
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
    """Raises `SllmError` for a `max_tokens` below 1 or an empty stop text."""
    if max_tokens is not None and max_tokens < 1:
        raise SllmError(f"max-tokens must be 1 or more; got {max_tokens}")
    if any(not text for text in stop):
        raise SllmError("a stop text is empty; give some text or leave it out")


def _stops(tokenizer: Any, given: Sequence[str], own: Sequence[str]) -> tuple[list[int], list[str]]:
    """Split stop texts, those given and the model's own, into control token ids and texts.

    Control tokens have no text, so a stop text that contains one amid other characters can never appear: it raises
    `SllmError` if given, and causes a warning if it is the model's own.
    """
    control = control_token_ids(tokenizer)
    never = [text for text in (*given, *own) if text.strip() not in control and any(name in text for name in control)]
    if refused := [text for text in never if text in given]:
        raise SllmError(
            f"the stop text {refused[0]!r} contains a control token, which has no text; give the token alone"
        )
    if never:
        warnings.warn(
            f"stop_strings {never} in generation_config.json contain control tokens and never appear", stacklevel=4
        )
    both = [text for text in (*given, *own) if text not in never]
    ids = [control[text.strip()] for text in both if text.strip() in control]
    return ids, [text for text in both if text.strip() not in control]


def _padded(ids: Sequence[int]) -> np.ndarray:
    """Token ids [N] int32, padded with `NO_TOKEN` to a multiple of 4, so that few programs are compiled."""
    return np.array([*ids, *[NO_TOKEN] * (-len(ids) % 4 if ids else 4)], np.int32)


def eos_ids(model: Model, tokenizer: Any) -> list[int]:
    """The end-of-text ids: those of generation_config.json, or else config.json, and the tokenizer's."""
    files = {"generation_config.json": model.generation_config, "config.json": model.hf_config}
    file = next((file for file, content in files.items() if content.get("eos_token_id") is not None), None)
    named = None if file is None else files[file]["eos_token_id"]
    ids = [one for one in [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id] if one is not None]
    if wrong := [one for one in ids if type(one) is not int]:
        raise SllmError(f"eos_token_id in the model's {file} must be token ids; got {wrong!r:.80}")
    return sorted(set(ids)) or [NO_TOKEN]


def fit_sizes(config: ModelConfig, start_size: int, recent_size: int | None) -> tuple[int, int]:
    """Start and recent size of a cache; `recent_size` None is the largest that fits the trained context, up to 2000.

    Warns if the cache is larger than the trained context or the model's sliding window. Raises `SllmError` for invalid
    sizes.
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
            f"a step attends to {start_size + recent_size + 1} tokens, but the model was trained on {context}; "
            "a smaller cache gives better text",
            stacklevel=3,
        )
    elif window and recent_size + 1 > window:
        warnings.warn(
            f"the model attends to the sinks and to the last {window} tokens, its sliding window; a recent_size above "
            f"{window - 1} adds no visible token",
            stacklevel=3,
        )
    return start_size, recent_size
