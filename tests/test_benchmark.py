"""`benchmark`: consistent results, the parts of a step in its trace, and bad input."""

import itertools
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from test_cli import assert_refused
from test_compiled import MPT, decode_arguments

from sllm_jax.benchmark import programs
from sllm_jax.benchmark import run as running
from sllm_jax.benchmark.limit import PROBE_BYTES, bytes_per_step, flops_per_token, probes
from sllm_jax.benchmark.programs import Program, recompute_program, seconds_per_step, streaming_program
from sllm_jax.benchmark.random_weights import random_model
from sllm_jax.benchmark.run import BenchmarkSettings, decode_figures
from sllm_jax.common.errors import SllmError
from sllm_jax.convert.families import module_for
from sllm_jax.core.decode import Carry, decode_program, init_carry
from sllm_jax.core.int8 import is_quantized, quantize_model
from sllm_jax.core.kv_state import state_shapes
from sllm_jax.core.memory import bytes_of, free_memory
from sllm_jax.core.model import Model, dense_logits, init_params, parameter_shapes

SCOPES = ("embedding", "qkv", "rope", "cache_write", "attention", "mlp", "head")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(programs, "CALL_SECONDS", 0.01)
    monkeypatch.setattr("sllm_jax.benchmark.limit.PROBE_BYTES", 2**22)


def test_the_bytes_of_a_step_by_hand():
    """Of the TINY Llama in bfloat16: E 24, F 44, H 6, K 3, D 10, V 101, two layers."""
    layer = 24 * 60 + 2 * 24 * 30 + 60 * 24 + 3 * 24 * 44 + 2 * 24
    cached = 2 * 2 * 3 * 10 * (4 + 50 + 1)
    for tied in (False, True):  # the table of input embeddings, or an output layer of the same size
        module = module_for(TINY | {"tie_word_embeddings": tied}, jnp.bfloat16)
        chosen = Model(module, init_params(module))
        assert bytes_per_step(chosen, 4, 50, streams=1) == 2 * (2 * layer + 101 * 24 + 24 + cached)
        assert bytes_per_step(chosen, 4, 50, streams=5) == 2 * (2 * layer + 101 * 24 + 24 + 5 * cached)


def test_layers_with_a_window_take_and_read_no_more_than_it(data):
    """Gemma 3 270M in bfloat16 at 4 + 8188: 3 layers keep 8,192 tokens, 15 keep 511; one key/value head of size 256."""
    module = module_for(json.loads((data / "configs/gemma3-270m.json").read_text()), jnp.bfloat16)
    chosen = Model(module, parameter_shapes(module))
    read = bytes_per_step(chosen, 4, 8188, streams=1) - bytes_of(chosen.params)
    assert read == 2 * 2 * 256 * (3 * 8193 + 15 * 512)
    shapes = state_shapes(module.config, 4, 8188, jnp.bfloat16)
    assert bytes_of((shapes.k, shapes.v)) == 2 * 2 * 256 * (3 * 8320 + 15 * 512)  # slots are multiples of 128


def test_probes_go_through_as_many_bytes_as_they_say():
    copy, read = probes()
    assert (copy.start.nbytes, read.start.nbytes) == (2**22, 2**22)
    assert (copy.steps, read.steps) == (8, 4)  # a copy reads and writes
    assert (copy.call(copy.start) == 1).all()  # negated four times
    assert read.call(read.start) is read.start


def test_programs_take_turns_and_the_first_round_is_not_counted():
    calls = []

    def program(name):
        return Program(lambda state: calls.append(name) or state + 1, jnp.zeros(()), 4, 0, 0.0)

    assert seconds_per_step([program("a"), program("b")], 2).shape == (2, 2)
    assert calls == ["a", "b"] * 3


@pytest.mark.parametrize("streams", [1, 3])
def test_a_program_writes_from_a_full_cache_on(tiny, streams):
    program = streaming_program(tiny, 4, 20, streams)
    state = program.start.state
    assert np.asarray(state.filled).tolist() == (24 if streams == 1 else [24] * 3)
    assert len(set(np.atleast_1d(state.ring.next_slot).tolist())) == streams  # of different lengths
    assert program.call(program.start).logits.shape == ((101,) if streams == 1 else (3, 101))
    assert program.memory > sum(leaf.nbytes for leaf in jax.tree.leaves(tiny.params))


def test_figures_follow_from_the_seconds_of_a_step(tiny):
    program = Program(print, None, 1, 3 * 2**20, 1.5)
    seconds = np.array([[0.1, 2, 1], [0.2, 1, 4], [0.4, 3, 2]])  # of a step, a copy, a read
    needed = bytes_per_step(tiny, 4, 50, 2)
    assert decode_figures(tiny, BenchmarkSettings(4, 50), 2, program, seconds) == {
        "streams": 2,
        "ms_per_step": 200,
        "tokens_per_second": 10,
        "mb_read_per_step": needed / 2**20,
        "gb_per_second": pytest.approx(needed / 0.2e9),
        "fraction_of_read_bandwidth": pytest.approx(10 * needed / PROBE_BYTES),  # of 10, 20 and 5
        "fraction_of_copy_bandwidth": pytest.approx(7.5 * needed / PROBE_BYTES),  # of 20, 5 and 7.5
        "program_memory_mb": 3,
        "compile_seconds": 1.5,
    }


@pytest.mark.parametrize(
    ("room", "buffers", "numbers"),
    [(0, 0, [1]), (4.9, 0, [1, 2]), (5, 0, [1, 2, 4]), (5, 1, [1, 2]), (9, 1, [1, 2, 4])],
)
def test_streams_are_doubled_for_as_long_as_they_fit(tiny, monkeypatch, room, buffers, numbers):
    """Streams take what they carry and their program's buffers, and the one they are copies of; `room` for so many."""
    carried, weights = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (init_carry(tiny, 4, 50), tiny.params)
    )
    programs = {n: SimpleNamespace(memory=weights + n * (1 + buffers) * carried) for n in (1, 2, 4)}
    monkeypatch.setattr(running, "free_memory", lambda: room * carried)
    monkeypatch.setattr(running, "streaming_program", lambda *arguments: programs[arguments[3]])
    assert list(running._numbers_of_streams(tiny, BenchmarkSettings(4, 50, None))) == [
        (n, programs[n]) for n in numbers
    ]


def test_too_many_streams_are_one_sentence(tiny, monkeypatch):
    def fails(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(running, "streaming_program", fails)
    with pytest.raises(SllmError, match="not enough memory for 7 streams; give fewer, or a smaller recent_size"):
        list(running._numbers_of_streams(tiny, BenchmarkSettings(4, 50, (7,))))


def test_doubling_ends_quietly_where_the_device_says_that_its_memory_is_full(tiny, monkeypatch):
    def at_most_two(*arguments):
        if arguments[3] > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return SimpleNamespace(memory=0)

    monkeypatch.setattr(running, "streaming_program", at_most_two)
    assert [streams for streams, _ in running._numbers_of_streams(tiny, BenchmarkSettings(4, 50, None))] == [1, 2]


def test_a_program_of_given_steps_is_compiled_once_and_its_state_is_not_copied(tiny, monkeypatch):
    monkeypatch.setattr(Carry, "copy", lambda _: pytest.fail("a second copy of all states"))
    assert streaming_program(tiny, 4, 20, 2, steps=5).steps == 5
    assert recompute_program(tiny, 25, steps=3).steps == 3
    monkeypatch.setattr(programs, "time", SimpleNamespace(perf_counter=itertools.count(0, 2**-9).__next__))
    assert streaming_program(tiny, 4, 20, 2).steps == int(programs.CALL_SECONDS * 2**9) == 5


@pytest.mark.parametrize("streams", [None, 3])
def test_reading_is_timed_with_full_caches_and_counts_the_tokens_of_all_streams(tiny, monkeypatch, streams):
    seen = []

    def reading(model, carry, chunk, count):
        seen.append((chunk.shape, np.asarray(count).tolist()))
        return carry

    monkeypatch.setattr(running, "extend", reading)
    monkeypatch.setattr(running, "time", SimpleNamespace(perf_counter=iter(range(100)).__next__))
    rate = running.tokens_read_per_second(tiny, BenchmarkSettings(4, 50, rounds=2), 16, streams)
    assert rate == 16 * (streams or 1)  # a second a call
    assert len(seen) == 4 + 1 + 2  # 54 tokens fill the cache
    assert set(map(str, seen)) == {str(((16,), 16) if streams is None else ((3, 16), [16] * 3))}


def test_the_operations_of_a_token_by_hand():
    """Of the TINY Llama: E 24, F 44, H 6, K 3, D 10, V 101, two layers; the vectors of its norms are counted too."""
    module = module_for(TINY, jnp.float32)
    weights = 2 * (24 * 60 + 2 * 24 * 30 + 60 * 24 + 3 * 24 * 44 + 2 * 24) + 101 * 24 + 24
    assert flops_per_token(Model(module, init_params(module)), 4, 50) == 2 * weights + 4 * 2 * 6 * 10 * 55


@pytest.mark.parametrize("config", [TINY, MPT], ids=["llama", "mpt"])
@pytest.mark.parametrize("int8", [False, True])
def test_random_weights_have_the_shapes_of_the_model_and_give_finite_logits(config, int8):
    chosen = random_model(config, jnp.bfloat16, int8)
    expected = quantize_model(chosen).params if int8 else init_params(chosen.module)
    assert jax.tree.map(jnp.shape, chosen.params) == jax.tree.map(jnp.shape, expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(chosen.params)} == (
        {"bfloat16", "int8", "float32"} if int8 else {"bfloat16"}
    )
    logits = dense_logits(chosen, jnp.arange(20))
    assert 0.1 < logits.std() < 10
    assert is_quantized(chosen.params) is int8
    others = random_model(config, jnp.bfloat16, int8, seed=1)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (chosen.params, others.params)), strict=True))


def test_free_memory_is_some_of_the_machine():
    assert 2**20 < free_memory() < 2**50


def test_the_command_prints_tables_and_writes_them_as_json(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "CHUNK_SIZES", (16,))
    arguments = ("--model", model, "--recent-size", 30, "--streams", 1, "--streams", 2, "--rounds", 1)
    code, out, _ = run("benchmark", *arguments, "--out", tmp_path / "all.json")
    assert code == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert [row["streams"] for row in found["decode"]] == [1, 2]
    for row in found["decode"]:
        assert row["fraction_of_read_bandwidth"] > 0
        assert row["fraction_of_copy_bandwidth"] > 0
        assert row["gb_per_second"] == pytest.approx(row["mb_read_per_step"] * 2**20 / row["ms_per_step"] / 1e6)
    assert [row["chunk_tokens"] for row in found["prefill"]] == [16]
    assert found["start"]["first_token_cold_seconds"] > 0
    assert found["start"]["peak_memory_mb"] > 50
    assert (found["start_size"], found["recent_size"], found["dtype"]) == (4, 30, "float32")
    assert re.search(r"^\| streams \| ms per step \|", out, re.MULTILINE)


def test_random_weights_of_a_config_and_a_trace(run, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "CHUNK_SIZES", (16,))
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    arguments = ("--config", tmp_path / "config.json", "--recent-size", 30, "--rounds", 1, "--dtype", "bfloat16")
    code, out, err = run("benchmark", *arguments, "--profile", tmp_path / "trace")
    assert code == 0
    assert "| dtype | bfloat16 |" in out
    assert re.search(r"wrote a trace of \d+ tokens to", err)
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))


def test_the_parts_of_a_step_have_names():
    lowered = decode_program.lower(*decode_arguments(jnp.float32), steps=2).as_text(debug_info=True)
    for scope in SCOPES:
        assert re.search(rf'["/]{scope}[/"]', lowered), scope


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
def test_against_others_ends_with_the_ratios(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    arguments = ("--config", tmp_path / "config.json", "--recent-size", 40, "--rounds", 2)
    others = ("--against", "recompute", "--against", "hf")
    code, out, _ = run("benchmark", *arguments, *others, "--out", tmp_path / "all.json")
    assert code == 0
    found = json.loads((tmp_path / "all.json").read_text())["against"]
    lines = [line for line in out.splitlines() if line.startswith("ratio")]
    assert lines == [f"ratio {name}/ours {found[name]['ratio_to_ours']:.3g}" for name in ("recompute", "hf")]
    assert out.splitlines()[-1] == lines[-1]


def test_bad_input_is_one_sentence(run, model, tmp_path):
    def refuses(message, *options):
        assert_refused(run("benchmark", "--model", model, *options), message)

    refuses("--against llama.cpp is not supported; give recompute or hf", "--against", "llama.cpp")
    refuses("streams must be 1 or more; got 0", "--streams", 0)
    refuses("--streams and --until-full exclude each other", "--streams", 2, "--until-full")
    refuses("rounds must be 1 or more; got 0", "--rounds", 0)
    refuses("has no none.json; give the folder", "--config", tmp_path / "none.json")


BEFORE_LOADING = {
    "streams": (("--streams", 0), "streams must be 1 or more; got 0"),
    "one of several": (("--streams", 2, "--streams", -1), "streams must be 1 or more; got 2, -1"),
    "rounds": (("--rounds", 0), "rounds must be 1 or more; got 0"),
    "start size": (("--start-size", -1), "start_size must be a non-negative integer; got -1"),
    "out": (("--out", "no/out.json"), "could not be written: No such file"),
    "profile": (("--profile", "file"), "could not be written: File exists"),
}


@pytest.mark.parametrize(("options", "message"), BEFORE_LOADING.values(), ids=BEFORE_LOADING)
def test_it_checks_its_options_before_it_loads_a_model(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert_refused(run("benchmark", "--model", tmp_path / "no-model", *options), message)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
