"""Evaluation passes over one text with different caches, comparable token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress
from sllm_jax.evaluate.perplexity import perplexity, token_nll
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions

RECOMPUTED = 2000  # default number of re-computed tokens, approximately


@dataclass(frozen=True)
class EvaluationPass:
    """A pass over the text: mode, cache sizes, number of tokens to predict (None: all), and stride."""

    mode: str
    start_size: int
    recent_size: int
    tokens: int | None = None
    stride: int = 1
    before: Sequence[int] | None = None  # token ids that replace the tokenizer's start tokens

    @property
    def cache(self) -> str:
        """The cache in the paper's notation: sinks + recent tokens."""
        return f"{self.start_size} + {self.recent_size}"


def nll_of_passes(
    inputs: ExperimentInputs, text: np.ndarray, passes: Mapping[str, EvaluationPass], progress: Progress
) -> dict[str, np.ndarray]:
    """The nll [N - 1] of the tokens of `text` [N] but the first, in nats, for each pass; NaN where not evaluated."""
    ends = {
        name: len(text) if one_pass.tokens is None else min(one_pass.tokens + 1, len(text))
        for name, one_pass in passes.items()
    }
    done, total = 0, sum(-(-(ends[name] - 1) // one_pass.stride) for name, one_pass in passes.items())
    nll = {}
    for name, one_pass in passes.items():
        before = np.array(inputs.start_tokens() if one_pass.before is None else one_pass.before, np.int32)
        ids = np.concatenate([before, text[: ends[name]]])
        start_size, recent_size, stride = one_pass.start_size, one_pass.recent_size, one_pass.stride
        pieces = []
        for piece in token_nll(inputs.model, ids, one_pass.mode, start_size, recent_size, stride=stride):
            pieces.append(piece)
            done += len(piece)
            progress(min(done, total), total)
        # Value i of the pass predicts ids[i + 1], which is token i + 1 - len(before) of the text.
        index = np.arange(0, len(ids) - 1, stride) - len(before)
        predicts_text = index >= 0
        values = np.full(len(text) - 1, np.nan)
        values[index[predicts_text]] = np.concatenate(pieces)[predicts_text]
        nll[name] = values
    return nll


def perplexity_of(nll: np.ndarray) -> float | None:
    """The perplexity over the evaluated tokens; None if there are none."""
    evaluated = nll[np.isfinite(nll)]
    return perplexity(evaluated) if len(evaluated) else None


def fresh_pass(inputs: ExperimentInputs, cache_size: int) -> str:
    """A description of the tokens that re-computation reads, for reports."""
    if inputs.model.config.attention_sink == "learnable":
        return f"a fresh pass over the sink token and the last {cache_size} tokens"
    return f"a fresh pass over the last {cache_size + 1} tokens"


def recompute_stride(options: ExperimentOptions, count: int) -> int:
    """The stride of re-computation over `count` tokens: the option, or one that gives about `RECOMPUTED` tokens."""
    return options.recompute_every or -(-count // RECOMPUTED)


def total_cache(inputs: ExperimentInputs, smallest: int) -> int:
    """The total cache size of an experiment, sinks and window: as given, or what fits the trained context.

    Raises `SllmError` if it is below `smallest`, the minimum of the experiment.
    """
    if (total := sum(inputs.sizes)) < smallest:
        raise SllmError(f"the experiment needs a cache of {smallest} tokens or more; got {total}")
    return total


def check_longer(inputs: ExperimentInputs, text: np.ndarray, cache_size: int) -> None:
    """Raises `SllmError` for a text [N] so short that no token is predicted after an eviction."""
    # A step sees one token more than the cache, and the last token is only predicted.
    needed = cache_size + 3 - len(inputs.start_tokens())
    if len(text) < needed:
        raise SllmError(
            f"the experiment needs a text that is longer than the window, {needed} tokens or more; got {len(text)}"
        )
