"""Pictures of a state agree with the paper's list: its contents, and the distances of its rotations."""

import jax.numpy as jnp
import numpy as np
import pytest

from sllm_jax.core.attention import plan, query_rotations
from sllm_jax.core.kv_state import advance, evict_for_space, init_state
from sllm_jax.evaluate.ring_picture import EMPTY, PREVIOUS_LAP, SINK, THIS_LAP, rotations, slots, steps

START, RECENT = 2, 5


@pytest.fixture
def states(tiny):
    """The state after each of 20 tokens, whose ids are 100, 101, ..."""
    state, after = init_state(tiny.config, START, RECENT, jnp.float32), {}
    for i in range(20):
        state = after[i + 1] = advance(state, jnp.array([100 + i]), jnp.int32(1))
    return after


def paper_list(read):
    """The tokens that the paper's list holds, as numbers of the order in which they were read."""
    return list(range(min(read, START))) + list(range(max(START, read - RECENT), read))


def test_slots_hold_the_papers_list(states):
    for read, state in states.items():
        held = slots(state)
        by_position = {p: token - 100 for p, token in zip(held.position, held.token_id, strict=True) if p >= 0}
        assert [by_position[p] for p in sorted(by_position)] == paper_list(read)
        assert sorted(by_position) == list(range(len(by_position)))
        assert ((held.kind == EMPTY) == (held.position < 0)).all()


def test_kinds_of_slots(states):
    assert slots(states[11]).kind.tolist() == [SINK] * START + [THIS_LAP] * 3 + [EMPTY] + [PREVIOUS_LAP] * 2
    assert slots(evict_for_space(states[11], 3)).kind.tolist() == [SINK] * 2 + [EMPTY, THIS_LAP, THIS_LAP] + [EMPTY] * 3


def test_a_query_meets_each_key_at_its_distance(states):
    for state in states.values():
        numbers, way = query_rotations(state.ring, plan(state.ring, 1, jnp.int32(1)))
        held, slot = slots(state), np.arange(state.ring.slots)
        difference = np.asarray(numbers[way])[: state.ring.slots] - slot
        assert (difference == int(state.filled) - held.position)[held.kind != EMPTY].all()
        assert difference[int(state.ring.next_slot)] == 0


def test_pictures_are_drawn(states):
    pictures = steps({n: states[n] for n in (1, 9)}, str), rotations(states[9])
    for picture in pictures:
        data, shown = picture._repr_png_()
        assert data.startswith(b"\x89PNG")
        assert shown == {"width": 700}
