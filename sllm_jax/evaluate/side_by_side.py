"""Three caches side by side: one model, prompt and seed, three texts written in lock step.

*Everything kept* goes past the trained context. *Window without sinks* and *streaming* have the same cache size. The
three texts are the same until the first token is evicted.

The measure of a cache is the perplexity of the same text, that of streaming, which all three read: scored on its own
text, a broken cache that loops would have a low perplexity. The measure favours streaming slightly, because no cache
predicts a text better on average than the one it was sampled from; use `token_nll` to compare caches on other texts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from itertools import takewhile, zip_longest
from typing import Any, Unpack

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress, silent
from sllm_jax.core.kv_state import init_state, state_shapes
from sllm_jax.core.memory import bytes_of, check_free
from sllm_jax.core.model import Model
from sllm_jax.core.sampling import SamplingOptions
from sllm_jax.evaluate.perplexity import Reading, perplexity, token_nll_batch
from sllm_jax.streams.stream import LEAST_WINDOW, Stream, check_end
from sllm_jax.text.tokenizer import encode, start_ids

RUNNING = 256  # tokens of the running perplexity
CHUNK = 32  # tokens of the common text that each cache reads at a time
STEPS = 4  # tokens written by one side before the next one has its turn
LARGEST = 256  # cache size of the default
TITLES = {"dense": "everything kept", "window": "window without sinks", "streaming": "streaming"}


class Side:
    """One of the three: a stream, its text, and the perplexity of the common text with its cache."""

    def __init__(self, name: str, model: Model, tokenizer: Any, start_size: int, recent_size: int, seed: int) -> None:
        """`name`: a key of `TITLES`. Raises `SllmError` as `Stream` does."""
        self.name, self.title = name, TITLES[name]
        self.start_size, self.recent_size = start_size, recent_size
        self.stream = Stream(model, tokenizer, start_size, recent_size, seed=seed, steps=STEPS)
        self.text = ""
        self.ids: list[int] = []  # written, without the prompt
        self.curve: list[float] = []  # the running perplexity after each chunk of the common text
        self._nll = np.empty(0, np.float32)
        self._reading = Reading([], [0], init_state(model.config, start_size, recent_size, model.dtype, streams=1))
        self._seconds, self._timed = 0.0, 0

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of writing, without the first block (compilation); None before the second block."""
        return self._timed / self._seconds if self._timed else None

    @property
    def perplexity(self) -> float | None:
        """Perplexity of the last `RUNNING` tokens of the common text; None before the first chunk is read."""
        return self.curve[-1] if self.curve else None

    @property
    def whole_perplexity(self) -> float | None:
        """Perplexity of all tokens of the common text read so far; None before the first chunk is read."""
        return perplexity(self._nll) if self.curve else None

    def write(self, max_tokens: int, **options: Unpack[SamplingOptions]) -> Iterator[None]:
        """Write `max_tokens` tokens and yield after each block."""
        begin = time.perf_counter()
        for piece in self.stream.generate(max_tokens, ignore_eos=True, **options):
            new = self.stream.tokens_written - len(self.ids)
            if self.ids:
                self._seconds += time.perf_counter() - begin
                self._timed += new
            self.text += piece
            self.ids += self.stream.last_ids[-new:] if new else []
            yield
            begin = time.perf_counter()

    def read(self, ids: np.ndarray, prompt_tokens: int) -> None:
        """Read the common text [T] up to its end. Tokens of the prompt do not count."""
        model, before = self.stream.model, self._reading.done[0]
        for reading in token_nll_batch(model, [ids], chunk_size=CHUNK, since=self._reading):
            self._reading = reading
            # The nll at index i is that of token i + 1.
            found = reading.nll[0][max(prompt_tokens - 1 - before, 0) :]
            before = reading.done[0]
            if len(found):
                self._nll = np.concatenate([self._nll, found])
                self.curve.append(perplexity(self._nll[-RUNNING:]))


class SideBySide:
    """The three sides of a model, in the order of `TITLES`."""

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        prompt: str | None = None,
        max_tokens: int = 2000,
        start_size: int = 4,
        recent_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """`recent_size` None: `default_recent_size`. Without a prompt, texts begin with BOS.

        Raises `SllmError` for invalid arguments, and if the cache that keeps everything does not fit into memory.
        """
        check_end(max_tokens, ())
        if recent_size is None:
            recent_size = default_recent_size(model.config.max_position_embeddings, start_size)
        if start_size == 0:
            raise SllmError("start_size must be 1 or more: without sinks, streaming is the same as the window")
        self.prompt, self.max_tokens, self._read_so_far = prompt, max_tokens, 0
        # Warnings come from this one; they would be the same for the window.
        streaming = Side("streaming", model, tokenizer, start_size, recent_size, seed)
        self._begin = start_ids(tokenizer) if prompt is None else encode(tokenizer, prompt, start=True)
        everything = len(self._begin) + max_tokens
        shapes = state_shapes(model.config, 0, everything, model.dtype)
        check_free(2 * bytes_of(shapes), f"keeping {everything} tokens in two caches", "give a smaller max-tokens")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # larger than the trained context on purpose
            dense = Side("dense", model, tokenizer, 0, everything, seed)
            window = Side("window", model, tokenizer, 0, start_size + recent_size, seed)
        self.sides = dense, window, streaming

    @property
    def written(self) -> int:
        """Tokens that each side has written."""
        return min(len(side.ids) for side in self.sides)

    @property
    def agreement(self) -> int:
        """The number of tokens before the first difference between the texts."""
        rows = zip(*(side.ids for side in self.sides), strict=False)
        return sum(1 for _ in takewhile(lambda row: len(set(row)) == 1, rows))

    def write(self, progress: Progress = silent, **options: Unpack[SamplingOptions]) -> Iterator[int]:
        """Write all texts in step; yield the number of tokens that each side has written, after each block.

        `progress` is called while prompts are read. `options` are those of `Stream.generate`. Raises `SllmError` as it
        does.
        """
        if self.prompt is not None:
            for side in self.sides:
                side.stream.feed(self.prompt, progress)
        for _ in zip_longest(*(side.write(self.max_tokens, **options) for side in self.sides)):
            self._read()
            yield self.written

    def _read(self) -> None:
        """Read new whole chunks of the common text with every cache; at the end, also the rest."""
        prompt, written = len(self._begin), self.sides[-1].ids
        predicting = prompt + len(written) - 1  # the last token is only predicted
        if len(written) < self.max_tokens:
            predicting -= predicting % CHUNK
        if predicting > self._read_so_far:
            self._read_so_far = predicting
            ids = np.concatenate([self._begin, np.array(written, np.int32)])[: predicting + 1]
            for side in self.sides:
                side.read(ids, prompt)


def default_recent_size(context: int, start_size: int) -> int:
    """The window of a cache of half the trained context, at most 256 tokens, so that it is full soon."""
    return max(min(context // 2, LARGEST) - start_size, LEAST_WINDOW)
