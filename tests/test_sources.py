"""The formats of Hugging Face checkpoints: equal parameters from each, and files that cannot be read."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import checkpoints
import jax
import numpy as np
import pytest
import torch
from checkpoints import Q_PROJ, VARIANTS, assert_same, load, module_of
from pages import ROOT

import sllm_jax
from sllm_jax import convert
from sllm_jax.common.errors import SllmError
from sllm_jax.convert import check_clone
from sllm_jax.convert.dtypes import FLOATS
from sllm_jax.convert.sources import read_pickle, read_safetensors


@pytest.fixture
def folder(tmp_path):
    checkpoints.save_llama(tmp_path / "hf")
    return tmp_path / "hf"


# formats


@pytest.mark.parametrize(("dtype", "options"), list(zip(FLOATS, VARIANTS, strict=True)))
def test_all_formats_give_the_same_parameters(tmp_path, dtype, options):
    one, sharded, pickled, shards, legacy = (tmp_path / name for name in ("one", "sharded", "pickle", "shards", "old"))
    checkpoints.save_llama(one, getattr(torch, dtype), **options)
    checkpoints.save_llama(sharded, getattr(torch, dtype), max_shard_size="20KB", **options)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    for folder, arguments in (
        (pickled, {}),
        (shards, {"shards": 3}),
        (legacy, {"_use_new_zipfile_serialization": False}),
    ):
        shutil.copytree(one, folder)
        checkpoints.to_pickle(folder, **arguments)
    for target in FLOATS:
        expected = load(one, target)
        for folder in (sharded, pickled, shards, legacy):
            assert_same(load(folder, target), expected)
    exact = {name: np.asarray(t.float()) for name, t in checkpoints.tensors_of(one).items()}
    assert np.array_equal(load(one, "float32")["norm"]["scale"], exact["model.norm.weight"])


def test_safetensors_come_first(folder):
    torch.save({"junk": torch.zeros(1)}, folder / "pytorch_model.bin")
    load(folder)


def test_parameters_do_not_hang_on_the_file(folder):
    params = load(folder)
    before = jax.tree.map(np.array, params)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert_same(params, before)


# files that cannot be read


def test_missing_folder(tmp_path, folder):
    with pytest.raises(SllmError, match=r"^folder .*nowhere not found; give one that exists"):
        convert.load_params(tmp_path / "nowhere", module_of(folder))
    with pytest.raises(SllmError, match=r"^folder .*nowhere not found; give one that exists"):
        convert.convert(tmp_path / "nowhere", tmp_path / "out")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(SllmError, match=r"hf has no weights; expected one of model\.safetensors, .*pytorch_model\.bin"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_safetensors(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        SllmError, match=r"model\.safetensors is truncated or not a safetensors file \(.*download it again"
    ):
        load(folder)


def test_garbage_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 5000)
    with pytest.raises(SllmError, match=r"is truncated or not a safetensors file"):
        load(folder)


def test_a_shard_that_is_absent(tmp_path):
    checkpoints.save_llama(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(SllmError, match=rf"index\.json names missing files: {shard.name}; download"):
        load(tmp_path)


def test_a_shard_outside_the_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {Q_PROJ: "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SllmError, match=r"names files outside its folder: \.\./model\.safetensors"):
        load(folder)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(SllmError, match=r"must map the name of each tensor to a file"):
        load(folder)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_would_run_code(folder, save):
    trace = folder / "trace"
    with pickle.loads(pickle.dumps(Malice(trace))):  # so would it do
        trace.unlink()
    (folder / "model.safetensors").unlink()
    save({"model.norm.weight": Malice(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(
        SllmError, match=r"is refused: .* could run code \(nothing in it was executed\); use a safetensors"
    ):
        load(folder)
    assert not trace.exists()


def test_a_truncated_pickle(folder):
    checkpoints.to_pickle(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SllmError, match=r"pytorch_model\.bin is (truncated|refused: it is corrupt)"):
        load(folder)


def test_a_pickle_of_something_else(folder):
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(1)], folder / "pytorch_model.bin")
    with pytest.raises(SllmError, match=r"must hold tensors by name; got list"):
        load(folder)


def test_a_pickle_without_pytorch(folder, monkeypatch):
    checkpoints.to_pickle(folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SllmError, match=r"needs PyTorch; run pip install -e '\.\[torch\]' in /"):
        load(folder)


@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint32),
        lambda tensor: tensor.to_sparse_csr(),
    ],
    ids=["sparse", "quantized", "sparse rows"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_without_plain_memory_is_one_sentence(tmp_path, make):
    torch.save({"a": make(torch.ones(3, 4))}, tmp_path / "pytorch_model.bin")
    (tensor,) = read_pickle(tmp_path / "pytorch_model.bin")
    with pytest.raises(SllmError, match=r"the tensor a cannot be read .*; save it as an ordinary tensor"):
        tensor.read()


def test_entries_of_a_header_that_nothing_has_checked_are_one_sentence(tmp_path):
    """safetensors looks at the last of two entries of one name."""
    good = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    for bad in (
        '{"dtype":"F32","shape":[3],"data_offsets":[0,8]}',
        '{"dtype":[],"shape":[2],"data_offsets":[0,8]}',
        '{"dtype":"F32","shape":7,"data_offsets":[0,8]}',
        '{"dtype":"F32","shape":["a"],"data_offsets":[0,8]}',
        '{"dtype":"F32","shape":[2],"data_offsets":[0]}',
        '{"shape":[2]}',
        "7",
        "[[[]]]",
    ):
        header = f'{{"a":{bad},"a":{good}}}'.encode()
        (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(SllmError, match=r"^[^\n]{,400}$"):
            [tensor.read() for tensor in read_safetensors(tmp_path / "a.safetensors")]


def test_a_convert_folder_of_another_clone_is_refused(tmp_path):
    package = Path(sllm_jax.__file__).parent
    for path in package.rglob("*.py"):
        if "bundled" not in path.parts:
            copied = tmp_path / "clone/sllm_jax" / path.relative_to(package)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
    found = subprocess.run(
        [sys.executable, "-c", "import sllm_jax.convert"], cwd=tmp_path / "clone", capture_output=True, text=True
    )
    said = f"sllm_jax is imported from {tmp_path / 'clone'}, but sllm_jax.convert from {ROOT}; install the clone"
    assert said in found.stderr


def test_the_convert_folder_of_a_clone_and_of_a_wheel_are_taken(tmp_path):
    check_clone(tmp_path / "sllm_jax", tmp_path / "convert")
    check_clone(tmp_path / "sllm_jax", tmp_path / "sllm_jax/convert")
    with pytest.raises(SllmError, match="install the clone that you use"):
        check_clone(tmp_path / "sllm_jax", tmp_path / "other/convert")
