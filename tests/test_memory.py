"""A cache that does not fit into memory is refused before anything is allocated."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.core import kv_state, memory
from sllm_jax.core.kv_state import init_state, state_shapes
from sllm_jax.core.memory import bytes_of, free_memory
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.streams.stream import Stream


@pytest.fixture
def nothing_allocated(monkeypatch):
    def refuse(*_):
        raise AssertionError("an array was allocated")

    monkeypatch.setattr(kv_state.jnp, "zeros", refuse)


def test_the_shapes_of_a_state_are_those_of_the_state(tiny):
    for streams in (None, 3):
        shapes = state_shapes(tiny.config, 4, 20, jnp.bfloat16, streams)
        state = init_state(tiny.config, 4, 20, jnp.bfloat16, streams)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), shapes
        )
        assert bytes_of(shapes) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("recent_size", "streams", "message"),
    [
        (2**29, None, r"a cache of 4 \+ 536870912 tokens takes 242 GiB of memory, and .* GiB are free"),
        (2**20, 2**12, r"a cache of 4 \+ 1048576 tokens for 4096 streams takes .* GiB of memory"),
    ],
)
@pytest.mark.usefixtures("nothing_allocated")
def test_a_cache_that_memory_cannot_hold_is_refused(tiny, recent_size, streams, message):
    with pytest.raises(SllmError, match=message):
        init_state(tiny.config, 4, recent_size, jnp.float32, streams)


@pytest.mark.filterwarnings("ignore:a step attends to")
@pytest.mark.usefixtures("nothing_allocated")
def test_a_stream_with_such_a_cache_is_refused(loaded):
    with pytest.raises(SllmError, match=r"a cache of 4 \+ 200000000 tokens takes .*; give a smaller recent_size"):
        Stream(*loaded, recent_size=200_000_000)


@pytest.mark.usefixtures("nothing_allocated")
def test_a_dense_text_that_memory_cannot_hold_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 2**20)
    with pytest.raises(SllmError, match="in dense mode a shorter text"):
        token_nll(tiny, np.ones(5000, np.int32), "dense")


def test_free_memory_is_that_of_the_device(monkeypatch):
    statistics = {"bytes_limit": 1000, "bytes_in_use": 400}
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(memory_stats=lambda: statistics)])
    assert free_memory() == 600


@pytest.mark.parametrize("statistics", [None, {}, {"bytes_in_use": 400}])
def test_free_memory_is_that_of_the_machine_if_the_device_reports_no_limit(monkeypatch, statistics):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(memory_stats=lambda: statistics)])
    assert 2**20 < free_memory() < 2**50


def test_free_memory_is_what_the_container_leaves(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    for name, content in {"max": "900000\n", "current": "500000\n", "stat": "anon 1\ninactive_file 7000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(content)
    assert free_memory() == 407_000


@pytest.mark.parametrize("limit", ["max\n", ""])
def test_a_container_without_a_limit_leaves_what_the_machine_has(monkeypatch, tmp_path, limit):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    for name, content in {"max": limit, "current": "500000\n", "stat": "inactive_file 7000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(content)
    assert 2**20 < free_memory() < 2**50
