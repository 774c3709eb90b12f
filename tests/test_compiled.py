"""The compiled programs: updates in place, no copies, no host round-trips; lowering for a TPU and a GPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from sllm_jax.convert.families import module_for
from sllm_jax.core.decode import decode, decode_program, extend, extend_program, init_carry
from sllm_jax.core.int8 import quantize_model
from sllm_jax.core.model import Model, init_params
from sllm_jax.core.sampling import sampling

OPTIONS = {"greedy": sampling(), "sampled": sampling(0.8, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1)}
EOS = jnp.array([2], jnp.int32)
LIMIT = jnp.int32(8)


MPT = {"model_type": "mpt", "vocab_size": 101, "d_model": 24, "n_heads": 6, "n_layers": 2, "max_seq_len": 64}


def decode_arguments(dtype, streams=None, options="greedy", config=TINY):
    module = module_for(config, dtype)
    params = jax.eval_shape(lambda: init_params(module))
    model = Model(module, params)
    carry = jax.eval_shape(lambda: init_carry(model, 4, 250, streams=streams))
    return model, carry, OPTIONS[options], EOS, LIMIT


PROGRAMS = {
    "greedy": (None, "greedy"),
    "sampled": (None, "sampled"),
    "three streams, greedy": (3, "greedy"),
    "three streams, sampled": (3, "sampled"),
    "ALiBi, three streams": (3, "greedy", MPT),
}


@pytest.fixture(scope="module", params=PROGRAMS.values(), ids=PROGRAMS)
def compiled(request):
    """The carry, the size of one layer's cache of one stream, and the program."""
    arguments = decode_arguments(jnp.float32, *request.param)
    carry, streams = arguments[1], request.param[0] or 1
    return carry, carry.state.k[0].size // streams, decode_program.lower(*arguments, steps=8).compile().as_text()


def aliased(hlo: str) -> set[int]:
    """Outputs that take the place of an input."""
    return {int(output) for output in re.findall(r"\{(\d+)\}: \(\d+", hlo.splitlines()[0])}


def caches_in(carry) -> set[int]:
    """The numbers of the keys and values of all layers among the arrays of a carry."""
    shapes = {leaf.shape for leaf in (*carry.state.k, *carry.state.v)}
    found = {i for i, leaf in enumerate(jax.tree.leaves(carry)) if leaf.shape in shapes}
    assert len(found) == 2 * len(carry.state.k)
    return found


def operations(hlo: str, opcode: str, size: int) -> list[str]:
    """Instructions of this kind, anywhere in the program, whose result has at least `size` elements."""
    found = re.findall(rf"^.*?= (?:\()?\w+\[([\d,]*)\]\S* {opcode}\(.*$", hlo, re.MULTILINE)
    return [shape for shape in found if shape and np.prod([int(n) for n in shape.split(",")]) >= size]


def test_every_array_of_the_carry_is_updated_in_place(compiled):
    carry, _, hlo = compiled
    assert aliased(hlo) == set(range(len(jax.tree.leaves(carry))))


def test_extend_too_updates_every_array_in_place():
    model, carry, *_ = decode_arguments(jnp.float32)
    tokens, count = jax.ShapeDtypeStruct((128,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    hlo = extend_program.lower(model, carry, tokens, count).compile().as_text()
    assert caches_in(carry) <= aliased(hlo)


@pytest.mark.parametrize("opcode", ["copy", "transpose", "pad", "concatenate", "copy-start"])
def test_no_cache_is_copied_moved_or_padded(compiled, opcode):
    _, cache_size, hlo = compiled
    assert not operations(hlo, opcode, cache_size)


def test_the_search_for_operations_finds_them(compiled):
    _, cache_size, hlo = compiled
    assert operations(hlo, "parameter", cache_size)
    assert operations(hlo, "concatenate", 1)


def test_one_loop_carries_the_caches_and_has_no_word_to_the_host(compiled):
    carry, _, hlo = compiled
    loops = re.findall(r"^.* while\(", hlo, re.MULTILINE)
    for cache in (carry.state.k[0], carry.state.v[0]):
        shape = ",".join(map(str, cache.shape))
        assert len([loop for loop in loops if f"[{shape}]" in loop]) == 1
    assert not re.search(r" (infeed|outfeed|send|recv)\(|xla_python.*callback|host_callback|MoveToHost", hlo)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("streams", [None, 3])
def test_decode_lowers_for_tpu_and_cuda_in_bfloat16(streams, options):
    arguments = decode_arguments(jnp.bfloat16, streams, options)
    exported = jax.export.export(decode_program, platforms=("tpu", "cuda"))(*arguments, steps=8)
    assert exported.platforms == ("tpu", "cuda")


@pytest.mark.parametrize("streams", [None, 3])
def test_extend_lowers_for_tpu_and_cuda_in_bfloat16(streams):
    model, carry, *_ = decode_arguments(jnp.bfloat16, streams)
    batch = () if streams is None else (streams,)
    tokens, count = jax.ShapeDtypeStruct((*batch, 128), jnp.int32), jax.ShapeDtypeStruct(batch, jnp.int32)
    exported = jax.export.export(extend_program, platforms=("tpu", "cuda"))(model, carry, tokens, count)
    assert exported.platforms == ("tpu", "cuda")


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("streams", [None, 3])
def test_what_other_devices_compute_is_what_a_cpu_computes(tiny, monkeypatch, int8, streams):
    model = quantize_model(tiny) if int8 else tiny
    tokens = np.random.default_rng(0).integers(0, 101, 30, np.int32)

    def written():
        jax.clear_caches()
        carry = init_carry(model, 3, 12, streams=streams)
        shape = (streams, 30) if streams else (30,)
        count = np.array([30, 17, 5], np.int32) if streams else np.int32(30)
        carry = extend(model, carry, np.broadcast_to(tokens, shape), count)
        carry, ids = decode(model, carry, OPTIONS["greedy"], EOS, LIMIT, 8)
        return carry.logits, ids

    logits, ids = written()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cpu, default: default(*operands))
    others, other_ids = written()
    np.testing.assert_allclose(logits, others, atol=1e-4)
    assert ids.tolist() == other_ids.tolist()
