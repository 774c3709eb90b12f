"""Stop texts: never shown, found across pieces, and counted in tokens."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm_jax.text.stop_text import StopText


def run(stops: list[str], pieces: list[str]) -> tuple[str, StopText]:
    stop = StopText(stops)
    return "".join(stop.add(piece) for piece in pieces), stop


@given(
    text=st.text("abAB", max_size=40), cuts=st.lists(st.integers(0, 40), max_size=10), stop=st.text("abAB", min_size=1)
)
def test_shown_is_the_text_before_the_first_stop(text, cuts, stop):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown, found = run([stop], [text[a:b] for a, b in pairwise(edges)])
    before, matched, _ = text.partition(stop)
    assert found.found == bool(matched)
    assert shown + found.rest() == before


@pytest.mark.parametrize(
    ("pieces", "surplus"),
    [(["one ", "USER", ":", " two"], 9), (["one USER: two"], 9), (["one ", "U", "SER:"], 5), (["USER:"], 5)],
)
def test_the_stop_text_and_what_follows_are_surplus(pieces, surplus):
    _, stop = run(["USER:"], pieces)
    assert stop.found
    assert stop.surplus == surplus


def test_the_earliest_of_several_stops_counts():
    shown, stop = run(["zz", "b"], ["a b zz"])
    assert (shown, stop.found) == ("a ", True)


def test_without_stops_text_passes_at_once():
    stop = StopText(())
    assert [stop.add("a"), stop.add("b"), stop.rest()] == ["a", "b", ""]
