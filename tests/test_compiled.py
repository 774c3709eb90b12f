"""The compiled programs: everything in place, nothing copied, no word to the host; and lowered for a TPU and a GPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from sllm_jax.decode import decode, extend, init_carry
from sllm_jax.model import init_params
from sllm_jax.models import module_for
from sllm_jax.sampling import sampling

OPTIONS = {"greedy": sampling(), "sampled": sampling(0.8, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1)}
EOS = jnp.array([2], jnp.int32)
LIMIT = jnp.int32(8)


MPT = {"model_type": "mpt", "vocab_size": 101, "d_model": 24, "n_heads": 6, "n_layers": 2, "max_seq_len": 64}


def decode_arguments(dtype, streams=None, options="greedy", config=TINY):
    module = module_for(config, dtype)
    params = jax.eval_shape(lambda: init_params(module))
    carry = jax.eval_shape(lambda: init_carry(module, 4, 250, streams=streams))
    return module, params, carry, OPTIONS[options], EOS, LIMIT


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
    carry, streams = arguments[2], request.param[0] or 1
    return carry, carry.state.k[0].size // streams, decode.lower(*arguments, steps=8).compile().as_text()


def aliased(hlo: str) -> set[int]:
    """Outputs that take the place of an input."""
    return {int(output) for output in re.findall(r"\{(\d+)\}: \(\d+", hlo.splitlines()[0])}


def operations(hlo: str, opcode: str, size: int) -> list[str]:
    """Instructions of this kind, anywhere in the program, whose result has at least `size` elements."""
    found = re.findall(rf"^.*?= (?:\()?\w+\[([\d,]*)\]\S* {opcode}\(.*$", hlo, re.MULTILINE)
    return [shape for shape in found if shape and np.prod([int(n) for n in shape.split(",")]) >= size]


def test_every_array_of_the_carry_is_updated_in_place(compiled):
    carry, _, hlo = compiled
    assert aliased(hlo) == set(range(len(jax.tree.leaves(carry))))


def test_extend_too_updates_every_array_in_place():
    module, params, carry, *_ = decode_arguments(jnp.float32)
    tokens, count = jax.ShapeDtypeStruct((128,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    hlo = extend.lower(module, params, carry, tokens, count).compile().as_text()
    caches = {i for i, leaf in enumerate(jax.tree.leaves(carry)) if leaf.shape[1:] == carry.state.k[0].shape[1:]}
    assert caches <= aliased(hlo)


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
    shape = ",".join(map(str, carry.state.k[0].shape))
    loops = re.findall(r"^.* while\(", hlo, re.MULTILINE)
    assert len([loop for loop in loops if f"[{shape}]" in loop]) == 1
    assert not re.search(r" (infeed|outfeed|send|recv)\(|xla_python.*callback|host_callback|MoveToHost", hlo)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("streams", [None, 3])
def test_decode_lowers_for_tpu_and_cuda_in_bfloat16(streams, options):
    arguments = decode_arguments(jnp.bfloat16, streams, options)
    exported = jax.export.export(decode, platforms=("tpu", "cuda"))(*arguments, steps=8)
    assert exported.platforms == ("tpu", "cuda")


@pytest.mark.parametrize("streams", [None, 3])
def test_extend_lowers_for_tpu_and_cuda_in_bfloat16(streams):
    module, params, carry, *_ = decode_arguments(jnp.bfloat16, streams)
    batch = () if streams is None else (streams,)
    tokens, count = jax.ShapeDtypeStruct((*batch, 128), jnp.int32), jax.ShapeDtypeStruct(batch, jnp.int32)
    exported = jax.export.export(extend, platforms=("tpu", "cuda"))(module, params, carry, tokens, count)
    assert exported.platforms == ("tpu", "cuda")
