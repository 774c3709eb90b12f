"""The programs of a 7B Llama, compiled ahead of time for a TPU v5e (libtpu comes with `[tpu]`).

Run these tests in one process: libtpu does not support a second one.
"""

import os
import re
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding
from test_compiled import EOS, LIMIT, OPTIONS, aliased, caches_in, operations

from sllm_jax.convert.families import module_for
from sllm_jax.core.decode import decode_program, extend_program, init_carry
from sllm_jax.core.int8 import scale_path
from sllm_jax.core.model import Model, init_params

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("libtpu"), reason="needs libtpu (pip install -e '.[tpu]')"),
]

MEMORY = 16 * 10**9  # bytes of a v5e
SEVEN_B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
GROUPED = SEVEN_B | {"num_key_value_heads": 8, "num_hidden_layers": 4}
MANY = SEVEN_B | {"num_hidden_layers": 4}
CASES = {"one stream": (SEVEN_B, None), "grouped queries": (GROUPED, None), "eight streams": (MANY, 8)}


@pytest.fixture(scope="module")
def tpu():
    """Turns a tree of shapes into one that lies on a TPU."""
    from jax.experimental import topologies

    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    place = SingleDeviceSharding(device)
    return lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def arguments(tpu, request):
    config, streams = request.param
    module = module_for(config, jnp.bfloat16)
    params = tpu(jax.eval_shape(lambda: init_params(module)))
    model = Model(module, params)
    return model, tpu(jax.eval_shape(lambda: init_carry(model, 4, 2044, streams=streams)))


def loop_bodies(hlo: str) -> str:
    """The computations that are the bodies of loops, and all that they call."""
    blocks = re.findall(r"^(?:ENTRY )?%([\w.\-]+) \(.*?\{\n(.*?)^\}", hlo, re.MULTILINE | re.DOTALL)
    computations = dict(blocks)
    wanted, found = re.findall(r"body=%([\w.\-]+)", hlo), {}
    while wanted:
        name = wanted.pop()
        if name in computations and name not in found:
            found[name] = computations[name]
            wanted += re.findall(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)", found[name])
    return "\n".join(found.values())


@pytest.mark.parametrize("options", OPTIONS)
def test_decode_runs_in_place_and_fits(tpu, arguments, options):
    model, carry = arguments
    rest = tpu((OPTIONS[options], EOS, LIMIT))
    program = decode_program.lower(model, carry, *rest, steps=8).compile()
    hlo, needs = program.as_text(), program.memory_analysis()
    body, one = loop_bodies(hlo), np.prod(carry.state.k[0].shape[-3:])
    assert operations(body, "dynamic-update-slice", one)  # the search finds the caches
    for opcode in ("copy", "transpose", "pad", "concatenate", "copy-start"):
        assert not operations(body, opcode, one), opcode
    assert aliased(hlo) >= caches_in(carry)
    assert not re.search(r" (infeed|outfeed|send|recv)\(", hlo)
    assert needs.argument_size_in_bytes + needs.temp_size_in_bytes < MEMORY


def test_int8_weights_are_read_as_they_are(tpu):
    module, params = module_for(MANY, jnp.bfloat16), {}
    for path, leaf in flatten_dict(jax.eval_shape(lambda: init_params(module)), sep="/").items():
        scale = scale_path(path)
        params[path] = jax.ShapeDtypeStruct(leaf.shape, jnp.int8) if scale else leaf
        params |= {scale: jax.ShapeDtypeStruct(leaf.shape[:1], jnp.float32)} if scale else {}
    model = Model(module, unflatten_dict(params, sep="/"))
    carry = jax.eval_shape(lambda: init_carry(model, 4, 2044))
    program = decode_program.lower(*tpu((model, carry, OPTIONS["greedy"], EOS, LIMIT)), steps=8).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2 * 4096 * 11008  # of one weight in bfloat16


def test_extend_fits(tpu, arguments):
    model, carry = arguments
    batch = carry.state.filled.shape
    tokens, count = tpu((jax.ShapeDtypeStruct((*batch, 512), jnp.int32), jax.ShapeDtypeStruct(batch, jnp.int32)))
    needs = extend_program.lower(model, carry, tokens, count).compile().memory_analysis()
    assert needs.argument_size_in_bytes + needs.temp_size_in_bytes < MEMORY
