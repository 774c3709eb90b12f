"""GGUF files that are cut, damaged or hostile: one sentence each, in no time and no memory."""

import struct

import checkpoints
import gguf_files
import numpy as np
import pytest

import sllm_jax
from sllm_jax.common.errors import SllmError
from sllm_jax.common.gguf_file import part_names, read_header


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return gguf_files.write_model(tmp_path_factory.mktemp("gguf") / "model.gguf", checkpoints.llama()).read_bytes()


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def header(*values, tensors=(), counts=None):
    """A file of keys with a type and packed value, and of packed tensors."""
    found = counts or (len(tensors), len(values))
    keys = b"".join(text(key) + struct.pack("<I", kind) + packed for key, kind, packed in values)
    return b"GGUF" + struct.pack("<IQQ", 3, *found) + keys + b"".join(tensors)


def tensor(name="a", shape=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARRAY, STRING, UINT8, UINT32 = 9, 8, 0, 4
HUGE = 2**61
HOSTILE = {
    "no magic": (b"GGML" + bytes(100), "does not begin with 'GGUF'"),
    "empty": (b"", ""),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version 1; expected little-endian and version 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
    "huge count of keys": (header(counts=(0, HUGE)), "promises"),
    "huge count of tensors": (header(counts=(HUGE, 0)), "promises"),
    "huge text": (header(("a", STRING, struct.pack("<Q", HUGE))), "ends within its header"),
    "huge array": (header(("a", ARRAY, struct.pack("<IQ", UINT32, HUGE))), "ends within its header"),
    "huge array of texts": (header(("a", ARRAY, struct.pack("<IQ", STRING, HUGE))), "promises"),
    "nested arrays": (header(("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 50)), "unknown type 9"),
    "unknown type": (header(("a", 99, b"")), "unknown type 99"),
    "a key twice": (header(("a", UINT8, b"1"), ("a", UINT8, b"2")), "a stands twice"),
    "a tensor twice": (header(tensors=(tensor(), tensor())), "the tensor a stands twice"),
    "no axes": (header(tensors=(tensor(shape=()),)), "a tensor has 0 axes"),
    "five axes": (header(tensors=(tensor(shape=(1,) * 5),)), "a tensor has 5 axes"),
    "an empty axis": (header(tensors=(tensor(shape=(0, 3)),)), "a tensor has the shape"),
    "huge axes": (header(tensors=(tensor(shape=(2**60, 2**60)),)), "a tensor has the shape"),
    "a huge tensor": (header(tensors=(tensor(shape=(2**50,)),)), "the tensor a ends after the file"),
    "a far tensor": (header(tensors=(tensor(offset=2**60),)), "the tensor a ends after the file"),
    "half a block": (header(tensors=(tensor(shape=(33,), kind=8),)), "which are not blocks of 32"),
    "alignment 0": (header(("general.alignment", UINT32, bytes(4))), "general.alignment must be a power of two"),
    "alignment 3": (header(("general.alignment", UINT32, struct.pack("<I", 3))), "must be a power of two; got 3"),
    "a text as alignment": (header(("general.alignment", STRING, text("x"))), "invalid literal"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_one_sentence(tmp_path, name):
    data, message = HOSTILE[name]
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(SllmError, match=rf"a\.gguf is truncated or not a GGUF file \(.*{message}.*\); fetch it again"):
        read_header(tmp_path / "a.gguf")


def test_a_file_cut_anywhere_is_refused(tmp_path, content):
    rng = np.random.default_rng(0)
    for end in [*range(0, 400, 7), *rng.integers(400, len(content), 60).tolist(), len(content) - 33]:
        (tmp_path / "cut.gguf").write_bytes(content[:end])
        with pytest.raises(SllmError, match=r"cut\.gguf|tensor"):
            sllm_jax.load(tmp_path / "cut.gguf")


def test_missing_and_unknown_tensors_are_listed(tmp_path):
    model = checkpoints.llama()
    tensors = gguf_files.tensors_of(model)
    tensors["blk.0.extra.weight"] = tensors.pop("blk.1.attn_k.weight")
    file = gguf_files.write(tmp_path / "a.gguf", "llama", gguf_files.metadata(model.config), tensors)
    with pytest.raises(SllmError, match=r"(?s)blk.0.extra.weight.*k_proj"):
        sllm_jax.load(file)


def test_a_number_that_is_not_finite_is_named(tmp_path):
    model = checkpoints.llama()
    tensors = gguf_files.tensors_of(model)
    tensors["blk.0.attn_q.weight"][3, 4] = np.nan
    file = gguf_files.write(tmp_path / "a.gguf", "llama", gguf_files.metadata(model.config), tensors)
    with pytest.raises(SllmError, match=r"model.layers.0.self_attn.q_proj.weight: 1 of 1152 not finite"):
        sllm_jax.load(file)


@pytest.mark.parametrize("name", ["model.gguf", "m-00001-of-00002.gguf", "m-1-of-3.gguf"])
def test_parts_with_other_names_are_refused(name):
    with pytest.raises(SllmError, match=r"is one of 3 parts, but not named so; expected NAME-00001-of-00003.gguf"):
        part_names(name, 3)


def test_a_folder_or_a_pipe_is_no_file(tmp_path):
    (tmp_path / "a.gguf").mkdir()
    with pytest.raises(SllmError, match=r"config.json"):
        sllm_jax.load(tmp_path / "a.gguf")
