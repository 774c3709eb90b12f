"""The largest number of streams of a 7B Llama in bfloat16 at 4 + 2044: estimated from sizes, then tried."""

from functools import partial

import jax
from decode_7b import decoding
from random_models import settings, seven_b
from step import Record, run

from sllm_jax.core.decode import init_carry
from sllm_jax.core.memory import bytes_of, free_memory

TRIES = 4


def measure(record: Record, tiny: bool) -> None:
    """Each try is a tenth smaller than the one before."""
    model, how = seven_b(tiny), settings(tiny)
    free = free_memory()
    one = bytes_of(jax.eval_shape(lambda: init_carry(model, how.start_size, how.recent_size)))
    record.note(free_gb=free / 1e9, stream_gb=one / 1e9, fit_by_size=free // one - 1)
    # 1: the stream that the others are copies of; 8%: the program's own memory.
    streams = 3 if tiny else int(0.92 * free / one) - 1
    for _ in range(TRIES):
        measured = partial(decoding, model, how, streams, 8 if tiny else 16)
        if record.attempt("tries", {"streams": streams}, measured):
            record.failed = False  # what was too many is an answer
            return record.note(most_streams=streams)
        streams = max(int(0.9 * streams), 1)
    return None


if __name__ == "__main__":
    run(measure)
