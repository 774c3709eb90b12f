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


def decode_arguments(dtype, streams=None, options="greedy"):
    module = module_for(TINY, dtype)
    params = jax.eval_shape(lambda: init_params(module))
    carry = jax.eval_shape(lambda: init_carry(module, 4, 250, streams=streams))
    return module, params, carry, OPTIONS[options], EOS, LIMIT


@pytest.fixture(scope="module", params=[None, 3], ids=["one stream", "three streams"])
def compiled(request):
    arguments = decode_arguments(jnp.float32, request.param)
    return arguments[2], decode.lower(*arguments, steps=8).compile().as_text()


def operations(hlo: str, opcode: str, size: int) -> list[str]:
    """Instructions of this kind, anywhere in the program, whose result has at least `size` elements."""
    found = re.findall(rf"^.*?= (?:\()?\w+\[([\d,]*)\]\S* {opcode}\(.*$", hlo, re.MULTILINE)
    return [shape for shape in found if shape and np.prod([int(n) for n in shape.split(",")]) >= size]


def test_every_array_of_the_carry_is_updated_in_place(compiled):
    carry, hlo = compiled
    header = hlo.splitlines()[0]
    aliased = set(re.findall(r"\{(\d+)\}: \(\d+", header))
    assert aliased == {str(i) for i in range(len(jax.tree.leaves(carry)))}


@pytest.mark.parametrize("opcode", ["copy", "transpose", "pad", "concatenate", "copy-start"])
def test_no_cache_is_copied_moved_or_padded(compiled, opcode):
    carry, hlo = compiled
    assert not operations(hlo, opcode, carry.state.k[0].size)


def test_the_search_for_operations_finds_them(compiled):
    carry, hlo = compiled
    smallest = carry.state.next_slot.size
    assert operations(hlo, "parameter", carry.state.k[0].size)
    assert operations(hlo, "concatenate", smallest)


def test_one_loop_and_no_word_to_the_host(compiled):
    _, hlo = compiled
    assert len(re.findall(r"^.* while\(", hlo, re.MULTILINE)) == 1
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
