"""Speed-up over sliding-window re-computation, with alternating calls and a cache of 4,096 tokens."""

from functools import partial

from random_models import settings, seven_b
from step import Record, run

from sllm_jax.benchmark.against import ratio_figures
from sllm_jax.benchmark.programs import recompute_program, streaming_program
from sllm_jax.benchmark.run import BenchmarkSettings
from sllm_jax.core.model import Model


def measure(record: Record, tiny: bool) -> None:
    """4 + 4,092."""
    how = settings(tiny, cache_size=4096)
    about = {"cache_size": how.start_size + how.recent_size}
    record.attempt("ratio", about, partial(ratio, seven_b(tiny), how))


def ratio(model: Model, how: BenchmarkSettings) -> dict[str, float]:
    """Of one stream; re-computation takes about 0.15 s for a token, so its call is 2 of them."""
    ours = streaming_program(model, how.start_size, how.recent_size, steps=32)
    return ratio_figures(ours, recompute_program(model, how.start_size + how.recent_size + 1, steps=2), how.rounds)


if __name__ == "__main__":
    run(measure)
