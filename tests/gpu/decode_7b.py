"""Speed of a 7B Llama in bfloat16 at 4 + 2044: decode with 1, 8 and 32 streams against bandwidth, and extend."""

from collections.abc import Sequence
from functools import partial

from random_models import settings, seven_b
from step import Record, run

from sllm_jax.benchmark.limit import flops_per_token, probes
from sllm_jax.benchmark.programs import seconds_per_step, streaming_program
from sllm_jax.benchmark.run import BenchmarkSettings, decode_figures, tokens_read_per_second
from sllm_jax.core.model import Model

STEPS = 64  # of a call
Chunk = tuple[int | None, int]  # streams, or None for one without an axis of streams; tokens of each
EXTEND: dict[int, Chunk] = {
    1: (None, 512),
    8: (8, 16),
    32: (32, 16),
}  # by streams of `decode`: what is compiled for it anyway
TINY_EXTEND: dict[int, Chunk] = {1: (None, 128), 2: (2, 16)}
MORE = [(None, 128), (None, 16), (8, 128)]


def measure(record: Record, tiny: bool) -> None:
    """As above."""
    figures(record, tiny, False, TINY_EXTEND if tiny else EXTEND, [] if tiny else MORE)


def figures(record: Record, tiny: bool, int8: bool, extend: dict[int, Chunk], more: Sequence[Chunk] = ()) -> None:
    """Rows for `decode` with as many streams as `extend` names, then for its chunks, and for more of these."""
    model, how = seven_b(tiny, int8), settings(tiny)
    for streams in extend:
        record.attempt("decode", {"streams": streams}, partial(decoding, model, how, streams, 8 if tiny else STEPS))
    for many, size in (*extend.values(), *more):
        record.attempt("extend", {"streams": many or 1, "chunk": size}, partial(reading, model, how, many, size))


def decoding(model: Model, how: BenchmarkSettings, streams: int, steps: int) -> dict[str, float]:
    """A step with full caches, in turns with copying and reading memory."""
    program = streaming_program(model, how.start_size, how.recent_size, streams, steps=steps)
    return decode_figures(model, how, streams, program, seconds_per_step([program, *probes()], how.rounds))


def reading(model: Model, how: BenchmarkSettings, streams: int | None, size: int) -> dict[str, float]:
    """Chunks that are read into full caches."""
    rate = tokens_read_per_second(model, how, size, streams)
    operations = flops_per_token(model, how.start_size, how.recent_size)
    return {
        "ms": 1e3 * size * (streams or 1) / rate,
        "tokens_per_second": rate,
        "tflops": rate * operations / 1e12,
    }


if __name__ == "__main__":
    run(measure)
