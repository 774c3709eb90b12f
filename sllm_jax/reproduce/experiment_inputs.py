"""The inputs of an experiment: a model, a tokenizer, a text, and options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.version import __version__
from sllm_jax.core.kv_state import check_memory, check_sizes
from sllm_jax.core.model import Model
from sllm_jax.evaluate.perplexity import check_token_ids
from sllm_jax.models.config import ModelConfig
from sllm_jax.reproduce.arc import ArcQuestion
from sllm_jax.streams.stream import fit_sizes
from sllm_jax.text.long_text import encode_blocks, text_blocks
from sllm_jax.text.tokenizer import encode

QA_FORMATS = ("few-shot", "chat")


@dataclass(frozen=True)
class ExperimentOptions:
    """The options of all experiments. Each experiment uses some of them; None selects its default."""

    max_tokens: int | None = None  # limit on the tokens of the text
    start_size: int = 4
    recent_size: int | None = None
    recompute_every: int | None = None
    dense_tokens: int | None = None
    lines: int | None = None  # streameval: lines of the stream
    questions: Mapping[str, Sequence[ArcQuestion]] = field(default_factory=dict)  # streamqa: questions by file
    max_questions: int | None = None  # streamqa: limit per file
    qa_format: str = "few-shot"
    cache_sizes: Sequence[int] = ()  # fig10: total sizes, sinks and window
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `SllmError` for invalid values."""
        check_sizes(self.start_size, self.recent_size or 0)
        if self.qa_format not in QA_FORMATS:
            raise SllmError(f"qa-format {self.qa_format!r} is not one of {', '.join(QA_FORMATS)}")
        for name in ("max_tokens", "recompute_every", "dense_tokens", "lines", "max_questions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SllmError(f"{name.replace('_', '-')} must be 1 or more; got {value}")


@dataclass(frozen=True)
class ExperimentInputs:
    """A model, its tokenizer, a text, and the options of the experiment."""

    model: Model
    tokenizer: Any
    text: str
    options: ExperimentOptions = field(default_factory=ExperimentOptions)
    names: Mapping[str, str] = field(default_factory=dict)  # names of the model and the text, for settings and plots

    def __post_init__(self) -> None:
        """Raises `SllmError` if there is no tokenizer."""
        if self.tokenizer is None:
            raise SllmError("text needs a tokenizer, and this model has none; name one (--tokenizer)")

    @property
    def context(self) -> int:
        """The trained context, in tokens."""
        return self.model.config.max_position_embeddings

    def start_tokens(self) -> np.ndarray:
        """The special tokens [N] that the tokenizer adds before a text; may be empty."""
        return encode(self.tokenizer, "", start=True)

    def text_tokens(self) -> np.ndarray:
        """Token ids [N] of the text without start tokens, up to `max_tokens`. Raises `SllmError` for fewer than 2."""
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
        """The `start_size` and `recent_size` given by `fit_sizes`, which warns once. Raises `SllmError`."""
        sizes = fit_sizes(self.model.config, self.options.start_size, self.options.recent_size)
        self.check_memory(*sizes)
        return sizes

    def check_memory(self, start_size: int, recent_size: int) -> None:
        """Raises `SllmError` if such a cache does not fit into free memory."""
        check_memory(self.model.config, start_size, recent_size, self.model.dtype)

    def settings(self) -> dict[str, str]:
        """The settings that every report lists."""
        device = jax.devices()[0]
        return {
            **self.names,
            "trained context": f"{self.context} tokens",
            **_windows(self.model.config),
            "dtype": jnp.dtype(self.model.dtype).name,
            "device": f"{device.platform} ({device.device_kind})",
            "sllm-jax": __version__,
        }


def _windows(config: ModelConfig) -> dict[str, str]:
    """The setting that says which layers keep fewer tokens than the stream; none if all layers are alike."""
    windows = [config.at_layer(i).sliding_window for i in range(config.num_hidden_layers)]
    counts = Counter(window for window in windows if window is not None)
    if not counts:
        return {}
    found = [f"{count} of {len(windows)} layers see the last {window} tokens" for window, count in counts.items()]
    return {"sliding window": "; ".join(found) + (", and the sinks" if config.sinks_in_windows else "")}
