"""`load`: accepted and refused input, and memory."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import assert_same
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from sllm_jax import convert
from sllm_jax.common.errors import SllmError
from sllm_jax.convert.dtypes import as_dtype
from sllm_jax.loading import pretrained as loading

SHARED = Path(__file__).resolve().parents[2] / "shared"
STORIES = SHARED / "data" / "checkpoints" / "stories260K-hf"
TOKENIZER = SHARED / "data" / "tokenizers" / "llama"
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is not here")
needs_tokenizer = pytest.mark.skipif(not TOKENIZER.is_dir(), reason=f"{TOKENIZER} is not here")


@pytest.fixture
def folder(tmp_path):
    checkpoints.save_llama(tmp_path / "hf")
    return tmp_path / "hf"


def test_a_hugging_face_folder(folder):
    model, tokenizer = loading.load(folder)
    assert tokenizer is None
    assert model.config.num_key_value_heads == 2
    assert model.hf_config["model_type"] == "llama"
    assert model.generation_config["_from_model_config"]
    assert model.dtype == jnp.float32
    assert_same(model.params, checkpoints.load(folder))
    assert_same(loading.load(str(folder))[0].params, model.params)


def test_a_converted_checkpoint(tmp_path, folder):
    convert.convert(folder, tmp_path / "out")
    model, other = loading.load(tmp_path / "out")[0], loading.load(folder)[0]
    assert_same(model.params, other.params)
    assert (model.hf_config, model.generation_config) == (other.hf_config, other.generation_config)
    assert model.module == other.module


@needs_stories
def test_a_trained_checkpoint_with_its_tokenizer(tmp_path):
    convert.convert(STORIES, tmp_path / "out")
    model, tokenizer = loading.load(STORIES)
    converted, tokenizer_beside = loading.load(tmp_path / "out")
    assert_same(converted.params, model.params)
    assert tokenizer.encode("Once upon a time") == tokenizer_beside.encode("Once upon a time")
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 260_032


def test_without_generation_config(folder):
    (folder / "generation_config.json").unlink()
    assert loading.load(folder)[0].generation_config == {}


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_the_default_dtype_depends_on_the_device(folder, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model, _ = loading.load(folder)
    expected = jnp.float32 if backend == "cpu" else jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(expected)}
    assert model.dtype == expected


@pytest.mark.parametrize("dtype", ["float16", np.float16, jnp.float16, np.dtype("float16"), jnp.dtype("float16")])
def test_spellings_of_a_dtype(folder, dtype):
    model, _ = loading.load(folder, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype("float16")}


@pytest.mark.parametrize("dtype", ["int8", "float64", "half a float", "auto", np.int32, 3, object(), ""])
def test_not_a_dtype(folder, dtype):
    with pytest.raises(SllmError, match=r"^dtype must be one of float32, bfloat16, float16; got "):
        loading.load(folder, dtype)
    with pytest.raises(SllmError, match=r"^dtype must be one of"):
        as_dtype(None)


# the tokenizer


@needs_tokenizer
def test_a_tokenizer_from_elsewhere(folder):
    own, other = folder / "tokenizer.json", TOKENIZER / "tokenizer.json"
    _, from_folder = loading.load(folder, tokenizer=TOKENIZER)
    _, from_file = loading.load(folder, tokenizer=str(other))
    shutil.copy(other, own)
    _, beside = loading.load(folder)
    assert from_folder.vocab_size == from_file.vocab_size == beside.vocab_size > 1000


def test_a_tokenizer_that_is_not_there(tmp_path, folder):
    with pytest.raises(
        SllmError, match=r"^there is no tokenizer in .*hf; expected tokenizer\.json or tokenizer\.model$"
    ):
        loading.load(folder, tokenizer=folder)
    with pytest.raises(SllmError, match=r"^folder .*nowhere not found; give one that exists"):
        loading.load(folder, tokenizer=tmp_path / "nowhere")


# what is refused


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_folder(tmp_path):
    with pytest.raises(SllmError, match=r"^folder .*nowhere not found; give one that exists"):
        loading.load(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(SllmError, match=r"model\.safetensors is a file; give the folder of the model, or a GGUF file"):
        loading.load(folder / "model.safetensors")


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(SllmError, match=r"hf has no config\.json; give the folder of a complete checkpoint$"):
        loading.load(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{broken", r"is not JSON "),
        (b"\xff\xfe{}", r"is not JSON "),
        ("", r"is not JSON "),
        ("[1]", r"must hold a JSON object; got list$"),
    ],
)
def test_a_broken_config(folder, name, content, message):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SllmError, match=message):
        loading.load(folder)


@pytest.mark.parametrize("model_type", ["bert", None, 7])
def test_unsupported_model_type(folder, model_type):
    change_config(folder, model_type=model_type)
    with pytest.raises(SllmError, match=rf"model_type {model_type!r} is not supported; supported are .*llama"):
        loading.load(folder)


def test_quantized_weights(folder):
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(SllmError, match=r"holds quantized weights \(.*gptq.*\); give a float32, float16 or bfloat16"):
        loading.load(folder)


def test_what_changes_nothing(folder):
    expected = loading.load(folder)[0].params
    change_config(folder, pretraining_tp=2, dtype=None, torch_dtype="auto")
    assert_same(loading.load(folder)[0].params, expected)


# memory


MEASURE = """
    import sys, threading, time
    from pathlib import Path
    import jax, numpy, orbax.checkpoint, torch
    from sllm_jax import convert
    from sllm_jax.common.files import load_config
    from sllm_jax.core.model import parameter_shapes
    from sllm_jax.convert.families import module_for

    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def watch():
        while True:
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)

    folder, dtype = Path(sys.argv[1]), sys.argv[2]
    module = module_for(load_config(folder), numpy.dtype(dtype))
    parameter_shapes(module)
    jax.device_put(numpy.zeros(8)).block_until_ready()
    before = anonymous()
    peak = [before]
    threading.Thread(target=watch, daemon=True).start()
    params = convert.load_params(folder, module)
    peak[0] = max(peak[0], anonymous())
    print((peak[0] - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


def save_large_llama(folder, save, pattern, index):
    """1.1 GB of bfloat16, in four files, which `save` writes, and their index."""
    sizes = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 10}
    config = LlamaConfig(**sizes, num_attention_heads=32, num_key_value_heads=4, dtype="bfloat16")
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    block = torch.randn(1 << 20).bfloat16()
    weight_map, names = {}, list(shapes)
    for i in range(4):
        tensors = {name: block.repeat(shapes[name].numel() // len(block) + 1) for name in names[i::4]}
        tensors = {name: t[: shapes[name].numel()].reshape(shapes[name]).clone() for name, t in tensors.items()}
        path = folder / pattern.format(i + 1)
        save(tensors, path)
        weight_map |= dict.fromkeys(tensors, path.name)
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
@pytest.mark.parametrize("form", ["safetensors", "pickle", "converted"])
def test_loading_takes_little_more_memory_than_the_parameters(tmp_path, form):
    folder = tmp_path / "model"
    if form == "pickle":
        save_large_llama(folder, torch.save, "pytorch_model-{:05}-of-00004.bin", "pytorch_model.bin.index.json")
    else:
        save_large_llama(folder, save_file, "model-{:05}-of-00004.safetensors", "model.safetensors.index.json")
    assert sum(path.stat().st_size for path in folder.iterdir()) > 1e9
    if form == "converted":
        folder = tmp_path / "converted"
        convert.convert(tmp_path / "model", folder)
    for dtype in ("bfloat16", "float32"):
        command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(folder), dtype]
        ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{form} in {dtype}: peak anonymous memory {ratio:.3f} x the parameters")
        assert 0.9 < ratio <= 1.2
