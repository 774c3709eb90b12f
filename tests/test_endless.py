"""A stream of 100,000 tokens through a trained model: constant memory, no new programs, bounded numbers."""

import gc

import numpy as np
from memory import resident_megabytes

from sllm_jax.core.decode import decode_program, extend_program
from sllm_jax.loading.pretrained import load
from sllm_jax.streams.stream import Stream


def test_a_hundred_thousand_tokens(shared):
    stream = Stream(*load(shared / "data/checkpoints/stories260K-hf"), 4, 252, steps=100)
    pieces = stream.generate(100_000, ignore_eos=True, temperature=1.0)
    written = 0
    for piece in pieces:
        written += len(piece)
        state = stream._carry.state
        assert 0 <= int(state.ring.next_slot) < 2 * state.ring.slots
        assert 0 <= int(state.filled) < 2 * state.ring.slots
        assert int(np.max(state.token_ids)) < 512
        if stream.tokens_written == 1000:
            gc.collect()
            young = resident_megabytes()
            programs = extend_program._cache_size(), decode_program._cache_size()
    gc.collect()
    assert stream.tokens_written == 100_000
    assert written > 200_000
    assert stream.cache_in_use == stream.cache_size == 256
    assert (extend_program._cache_size(), decode_program._cache_size()) == programs
    assert resident_megabytes() - young < 4
