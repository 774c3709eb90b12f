"""Agreement of the device with the CPU: three families in float32, bfloat16 and int8.

Compared over a text several times as long as the cache:

- logits of dense attention with those of the same weights on the CPU in float32. Tolerance: 1e-4 of their norm in
  float32; in bfloat16 1.5 times the error of bfloat16 on the CPU, or 1e-2;
- chunkings: the logits after the text, read in large chunks, in small chunks, and token by token;
- greedy and sampled text with that of the CPU at the same dtype and seed. Rounding may change a token only if two
  tokens are almost tied: their scores on the CPU differ by at most twice the largest difference of the logits there;
- in float32, a batch of three streams with that of the CPU.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share the device
# Many small programs run once: without this, each process measures kernels for each of them, on one device.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"

import jax
import numpy as np
from small_models import BUNDLED, RANDOM, in_float32, on_device, small_model
from step import Record, run

from sllm_jax.core.decode import NO_TOKEN, Carry, decode, extend, init_carry, prefill
from sllm_jax.core.model import Model, dense_logits
from sllm_jax.core.sampling import Sampling, sampling

EXACT = {"float32": 1e-4, "bfloat16": 1e-2, "int8": 1e-2}  # of the norm; see above
MORE_THAN_THE_CPU = 1.5
PROCESSES = 15  # one a case
TINY_CASES = [("random llama", "float32"), ("random gpt_neox", "float32"), ("random falcon", "bfloat16")]
CUTS = (7, 16, 9)  # of the text that is read in small chunks, in turns
TEMPERATURE = 0.8
NO_EOS = np.array([NO_TOKEN], np.int32)


@dataclass(frozen=True)
class Sizes:
    """Of the cache, the text that is read, and the text that is written then."""

    start_size: int = 4
    recent_size: int = 59
    read: int = 200
    written: int = 128
    layers: int = 2  # of random models


def measure(record: Record, tiny: bool) -> None:
    """Each case in a process of its own, because most of the time is the compiler's and Python's."""
    sizes = Sizes(recent_size=15, read=40, written=8, layers=1) if tiny else Sizes()
    cases = [(name, precision) for precision in ("float32", "bfloat16") for name in (*BUNDLED, *RANDOM)]
    cases = TINY_CASES if tiny else [*cases, ("bundled:llama", "int8")]
    record.note(sizes=vars(sizes), cases_in_all=len(cases))
    with some_processes(0 if tiny else min(PROCESSES, os.cpu_count() or 1)) as start:
        begun = [(about, start(compare, *about, sizes)) for about in cases]
        for (name, precision), result in begun:
            record.attempt("cases", {"model": name, "precision": precision}, result)
    off = [f"{row['model']} {row['precision']}: {row.get('off', 'error')}" for row in record.found["cases"]]
    record.note(off=[row for row in off if not row.endswith(": ")])
    record.failed |= bool(record.found["off"])


@contextmanager
def some_processes(count: int) -> Iterator[Callable[..., Callable[[], Any]]]:
    """What starts a function in one of `count` processes and gives what waits for it; 0: it runs when waited for."""
    if count == 0:
        yield partial
    else:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as processes:
            yield lambda *call: processes.submit(*call).result


def compare(name: str, precision: str, sizes: Sizes) -> dict[str, Any]:
    """Figures of one model, and the names of those that are out of bounds."""
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    with jax.default_device(cpu):
        model = small_model(name, precision, sizes.layers)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, sizes.read, np.int32)
    here, there = (Side(on_device(model, place), place, tokens, sizes) for place in (device, cpu))
    exact = Side(in_float32(there.model), cpu, tokens, sizes).dense()
    own = difference(there.dense(), exact)  # what the CPU's rounding is
    bound = max(EXACT[precision], MORE_THAN_THE_CPU * own)
    figures = {
        "logits": difference(here.dense(), exact),
        "logits_of_cpu": own,
        "largest_difference": float(np.abs(here.dense() - there.dense()).max()),
        "chunkings": here.chunkings(),
        "chunkings_of_cpu": there.chunkings(),
        "streams": difference(here.side_by_side(), there.side_by_side()) if precision == "float32" else None,
        **texts(here, there),
    }
    chunking_bound = max(EXACT[precision], MORE_THAN_THE_CPU * figures["chunkings_of_cpu"])
    inside = {
        "logits": figures["logits"] <= bound,
        "chunkings": figures["chunkings"] <= chunking_bound,
        "streams": figures["streams"] is None or figures["streams"] <= bound,
        "greedy": figures["greedy_explained"],
        "sampled": figures["sampled_explained"],
    }
    off = [check for check, holds in inside.items() if not holds]
    return {"device": str(device), "reference": str(cpu), "off": ", ".join(off), "bound": bound, **figures}


class Side:
    """One model on one device, and what it makes of a text."""

    def __init__(self, model: Model, device: Any, tokens: np.ndarray, sizes: Sizes) -> None:
        self.model, self.device, self.tokens, self.sizes = model, device, tokens, sizes

    def dense(self) -> np.ndarray:
        """Logits of the whole text [T, V]."""
        return self._here(lambda: np.asarray(_dense(self.model, self.tokens)))

    def carry(self, cuts: tuple[int, ...] = (), tokens: np.ndarray | None = None) -> Carry:
        """A stream that has read the text, in pieces of these lengths in turns."""
        tokens = self.tokens if tokens is None else tokens

        def make() -> Carry:
            carry, left, i = init_carry(self.model, self.sizes.start_size, self.sizes.recent_size), tokens, 0
            while len(left):
                size = cuts[i % len(cuts)] if cuts else 128
                carry, left, i = prefill(self.model, carry, left[:size]), left[size:], i + 1
            return carry

        return self._here(make)

    def write(self, options: Sampling, limit: int | None = None) -> tuple[Carry, np.ndarray]:
        """What a stream writes after the text: the carry then and the tokens, `limit` of them."""
        steps = self.sizes.written

        def write() -> tuple[Carry, np.ndarray]:
            limited = np.int32(steps if limit is None else limit)
            carry, ids = decode(self.model, self.carry(), options, NO_EOS, limited, steps=steps)
            return carry, np.asarray(ids)

        return self._here(write)

    def chunkings(self) -> float:
        """How far logits are apart that differ in chunking alone."""
        written, ids = self.write(sampling())
        after = [self.carry(CUTS, np.append(self.tokens, ids)), self.carry((), np.append(self.tokens, ids))]
        large, small = self.carry(), self.carry(CUTS)
        return max(difference(large.logits, small.logits), *(difference(written.logits, one.logits) for one in after))

    def side_by_side(self) -> np.ndarray:
        """Logits [3, V] of three streams that read 16, 11 and 5 tokens at a time."""

        def make() -> np.ndarray:
            carry = init_carry(self.model, self.sizes.start_size, self.sizes.recent_size, streams=3)
            for i in range(0, len(self.tokens) - 15, 16):
                chunk = np.broadcast_to(self.tokens[i : i + 16], (3, 16))
                carry = extend(self.model, carry, chunk, [16, 11, 5])
            return np.asarray(carry.logits)

        return self._here(make)

    def _here(self, function: Callable[[], Any]) -> Any:
        with jax.default_device(self.device):
            return function()


def texts(here: Side, there: Side) -> dict[str, Any]:
    """How many tokens of greedy and sampled text are the same, and whether rounding explains the first other one."""
    found: dict[str, Any] = {"written": here.sizes.written}
    for name, temperature in (("greedy", 0.0), ("sampled", TEMPERATURE)):
        options = sampling(temperature)
        ours, theirs = here.write(options)[1], there.write(options)[1]
        same = int(np.append(ours == theirs, False).argmin())
        found |= {f"{name}_same": same, f"{name}_explained": True}
        if same < len(ours):
            (our_carry, _), (their_carry, _) = here.write(options, same), there.write(options, same)
            scores = scores_of(their_carry, temperature)
            gap = float(scores[theirs[same]] - scores[ours[same]])
            apart = float(np.abs(np.asarray(our_carry.logits) - np.asarray(their_carry.logits)).max())
            found |= {f"{name}_gap": gap, f"{name}_largest_difference": apart}
            found[f"{name}_explained"] = gap <= 2 * apart / (temperature or 1) + 1e-4
    return found


def scores_of(carry: Carry, temperature: float) -> np.ndarray:
    """What the next token is the largest of [V]."""
    logits = np.asarray(carry.logits)
    if temperature == 0:
        return logits
    _, key = jax.random.split(carry.key)
    return (logits - logits.max()) / temperature + np.asarray(jax.random.gumbel(key, logits.shape))


def difference(found: Any, expected: Any) -> float:
    """Of two arrays, as a part of the norm; infinite where one is not finite."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    apart = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    return float(apart) if np.isfinite(apart) else float("inf")


_dense = jax.jit(dense_logits)

if __name__ == "__main__":
    run(measure)
