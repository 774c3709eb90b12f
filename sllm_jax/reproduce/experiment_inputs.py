"""What an experiment is made on: a model, a text, and the options of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.version import __version__
from sllm_jax.core.kv_state import check_memory
from sllm_jax.core.model import Model
from sllm_jax.evaluate.perplexity import check_token_ids
from sllm_jax.reproduce.arc import ArcQuestion
from sllm_jax.streams.kv_cache import check_sizes
from sllm_jax.streams.stream import fit_sizes
from sllm_jax.text.long_text import encode_blocks, text_blocks
from sllm_jax.text.tokenizer import encode

QA_FORMATS = ("few-shot", "chat")


@dataclass(frozen=True)
class ExperimentOptions:
    """What the command was asked for; each experiment looks at its own, and chooses where there is None."""

    max_tokens: int | None = None  # of the text, at most
    start_size: int = 4
    recent_size: int | None = None
    recompute_every: int | None = None
    dense_tokens: int | None = None
    lines: int | None = None  # of streameval
    questions: Mapping[str, Sequence[ArcQuestion]] = field(default_factory=dict)  # of streamqa, by name of their file
    max_questions: int | None = None  # of each file, at most
    qa_format: str = "few-shot"
    cache_sizes: Sequence[int] = ()  # of fig10, sinks and window
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no experiment can use."""
        check_sizes(self.start_size, self.recent_size or 0)
        if self.qa_format not in QA_FORMATS:
            raise SllmError(f"qa-format {self.qa_format!r} is not one of {', '.join(QA_FORMATS)}")
        for name in ("max_tokens", "recompute_every", "dense_tokens", "lines", "max_questions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SllmError(f"{name.replace('_', '-')} must be 1 or more; got {value}")


@dataclass(frozen=True)
class ExperimentInputs:
    """A model, its tokenizer, a text, and how to go about it."""

    model: Model
    tokenizer: Any
    text: str
    options: ExperimentOptions = field(default_factory=ExperimentOptions)
    names: Mapping[str, str] = field(default_factory=dict)  # of model and text, for settings and plots

    def __post_init__(self) -> None:
        """Refuse a model without a tokenizer."""
        if self.tokenizer is None:
            raise SllmError("text needs a tokenizer, and this model has none beside it; name one (--tokenizer)")

    @property
    def context(self) -> int:
        """Tokens that the model was trained on at a time."""
        return self.model.config.max_position_embeddings

    def start_tokens(self) -> np.ndarray:
        """The special tokens [N] that the tokenizer puts before a text, if any."""
        return encode(self.tokenizer, "", start=True)

    def text_tokens(self) -> np.ndarray:
        """The token ids [N] of the text alone, `max_tokens` at most. Raises `SllmError` for fewer than two."""
        return self._text_tokens

    @cached_property
    def _text_tokens(self) -> np.ndarray:
        limit, pieces, count = self.options.max_tokens, [np.zeros(0, np.int32)], 0
        for block in encode_blocks(self.tokenizer, text_blocks(self.text)):
            pieces.append(block.tokens.ids)
            count += len(pieces[-1])
            if limit is not None and count >= limit:
                break
        return check_token_ids(np.concatenate(pieces)[:limit], self.model.config.vocab_size)

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """`start_size` and `recent_size` of the cache, as `fit_sizes` has them; it warns once. Raises `SllmError`."""
        sizes = fit_sizes(self.model.config, self.options.start_size, self.options.recent_size)
        self.check_memory(*sizes)
        return sizes

    def check_memory(self, start_size: int, recent_size: int) -> None:
        """Raises `SllmError` for a cache that does not fit into the memory that is free."""
        check_memory(self.model.config, start_size, recent_size, self.model.dtype)

    def settings(self) -> dict[str, str]:
        """What every experiment's table says of how it was made."""
        device = jax.devices()[0]
        return {
            **self.names,
            "trained context": f"{self.context} tokens",
            "dtype": jnp.dtype(self.model.dtype).name,
            "device": f"{device.platform} ({device.device_kind})",
            "sllm-jax": __version__,
        }
