"""Passes over one text with different caches, so that their perplexities compare token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress
from sllm_jax.evaluate.perplexity import perplexity, token_nll
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions

RECOMPUTED = 2000  # tokens that are re-computed, about, unless --recompute-every says otherwise


@dataclass(frozen=True)
class EvaluationPass:
    """One pass: a mode, its sizes, how many tokens it predicts (None: all), and every how many of them."""

    mode: str
    start_size: int
    recent_size: int
    tokens: int | None = None
    stride: int = 1
    before: Sequence[int] | None = None  # token ids in the place of the tokenizer's start tokens

    @property
    def cache(self) -> str:
        """The cache, as the paper writes it: sinks + recent tokens."""
        return f"{self.start_size} + {self.recent_size}"


def nll_of_passes(
    inputs: ExperimentInputs, text: np.ndarray, passes: Mapping[str, EvaluationPass], progress: Progress
) -> dict[str, np.ndarray]:
    """The nll of each token of `text` [N] but the first, [N - 1], in each run; NaN where one did not evaluate it."""
    ends = {name: len(text) if one.tokens is None else min(one.tokens + 1, len(text)) for name, one in passes.items()}
    done, total = 0, sum(-(-(ends[name] - 1) // one.stride) for name, one in passes.items())
    nll = {name: np.full(len(text) - 1, np.nan) for name in passes}
    for name, one in passes.items():
        before = np.array(inputs.start_tokens() if one.before is None else one.before, np.int32)
        ids, pieces = np.concatenate([before, text[: ends[name]]]), []
        for piece in token_nll(inputs.model, ids, one.mode, one.start_size, one.recent_size, stride=one.stride):
            pieces.append(piece)
            done += len(piece)
            progress(min(done, total), total)
        place = np.arange(0, len(ids) - 1, one.stride) - len(before)  # of each token in nll, once those before are read
        of_text = place >= 0
        nll[name][place[of_text]] = np.concatenate(pieces)[of_text]
    return nll


def perplexity_of(nll: np.ndarray) -> float | None:
    """Over the tokens that were evaluated; None if there are none."""
    evaluated = nll[np.isfinite(nll)]
    return perplexity(evaluated) if len(evaluated) else None


def fresh_pass(inputs: ExperimentInputs, cache_size: int) -> str:
    """What re-computation looks at, in words."""
    has_sink = inputs.model.config.attention_sink == "learnable"
    return f"a fresh pass over {'the sink token and ' * has_sink}the last {cache_size + 1 - has_sink} tokens"


def recompute_stride(options: ExperimentOptions, count: int) -> int:
    """Every how many of `count` tokens are re-computed: as asked for, or so that about `RECOMPUTED` are."""
    return options.recompute_every or -(-count // RECOMPUTED)


def total_cache(inputs: ExperimentInputs, smallest: int) -> int:
    """The total cache of an experiment, sinks and window: what was asked for, or what fits the trained context.

    Raises `SllmError` for less than `smallest`, which the experiment needs.
    """
    if (total := sum(inputs.sizes)) < smallest:
        raise SllmError(f"the experiment needs a cache of {smallest} tokens or more; got {total}")
    return total


def check_longer(inputs: ExperimentInputs, text: np.ndarray, cache_size: int) -> None:
    """Raises `SllmError` for a text [N] none of whose tokens is predicted from a cache that has lost some."""
    needed = cache_size + 3 - len(inputs.start_tokens())  # a step sees one more than the cache, and is not the last
    if len(text) < needed:
        raise SllmError(
            f"the experiment needs a text that is longer than the window, {needed} tokens or more; got {len(text)}"
        )
