"""GGUF files against the same models in safetensors, against `transformers`, and against the `gguf` package itself."""

import json
import shutil
from dataclasses import replace

import checkpoints
import families
import gguf_files
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import assert_same
from gguf import GGMLQuantizationType, GGUFReader, quants
from transformers import AutoModelForCausalLM

import sllm_jax
from sllm_jax.common.errors import SllmError
from sllm_jax.common.gguf_file import read_header, read_headers
from sllm_jax.convert import convert, read_config, to_huggingface
from sllm_jax.convert.gguf_quants import dequantized, dtype_of
from sllm_jax.core.model import dense_logits
from sllm_jax.models.generation_config import unsupported_keys

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 101, 20), jnp.int32)
# Options that GGUF files, or llama.cpp, do not have.
ABSENT = {
    ("mistral", "sliding window"),
    ("qwen2", "sliding window"),
    ("qwen3", "sliding window, tied"),
    *(("gpt_neox", name) for name in ("tanh gelu", "rope linear", "rope dynamic", "yarn in a part of each head")),
    *(("falcon", name) for name in ("RW", "RW, heads a power of two", "7B with ALiBi", "40B with ALiBi")),
    *(("falcon", name) for name in ("all heads their own", "serial, multi-query", "rope dynamic, tanh gelu, epsilon")),
    ("mpt", "another scale"),
    *(("gemma2", name) for name in ("untied, biases, epsilon", "no caps")),
    ("gemma3_text", "no window, biases"),
    *(
        ("qwen2", "a window in one layer"),
        ("smollm3", "every second layer without RoPE"),
        ("smollm3", "yarn"),
        ("smollm3", "a list, windows"),
    ),
}
LLAMAS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 500.0,
        }
    },
    "llama3": {
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500000.0,
        },
    },
}
WITH_LOGITS = {
    "longrope in a part of each head",
    "no window",
    "plain",
    "untied, biases",
    "parallel",
    "7B",
    "40B",
    "llama3",
}  # the configs of the rest are all that can differ
CASES = [*(case for case in families.CASES if case not in ABSENT), *(("llama", name) for name in LLAMAS)]


def model_of(name, variant):
    if name == "llama":
        return checkpoints.llama(**LLAMAS[variant])
    if not name.startswith("gemma"):
        return families.random_model(name, variant)
    model = families.random_model(name, variant, query_pre_attn_scalar=10)  # GGUF files do not have it
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path:
                parameter.copy_(parameter.half())  # so that 1 + weight is exact
    return model


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_gguf_file_is_the_model_in_safetensors(tmp_path, name, variant):
    model = model_of(name, variant)
    model.save_pretrained(tmp_path / "folder")
    file = gguf_files.write_model(tmp_path / "model.gguf", model)
    ours, theirs = sllm_jax.load(file, "float32")[0], sllm_jax.load(tmp_path / "folder", "float32")[0]
    assert_same(ours.params, theirs.params)
    assert without_rounding(ours.module.config, theirs.module.config) == theirs.module.config
    if variant not in WITH_LOGITS:
        return
    with torch.no_grad():
        expected = model(torch.tensor(np.asarray(TOKENS)[None])).logits[0].numpy()
    assert np.allclose(dense_logits(ours, TOKENS), expected, rtol=2e-4, atol=2e-4)


def without_rounding(config, theirs):
    """The config with the model type of `theirs`, and its attention factor if it is the same in float32."""
    ours, expected = config.rope.attention_factor, theirs.rope.attention_factor
    assert ours == pytest.approx(expected, rel=1e-6)
    return replace(config, model_type=theirs.model_type, rope=replace(config.rope, attention_factor=expected))


@pytest.fixture
def llama(tmp_path):
    return gguf_files.write_model(tmp_path / "model.gguf", checkpoints.llama())


# quantization

QUANTIZED = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", QUANTIZED)
def test_tensors_are_those_of_the_package(tmp_path, kind):
    kind = GGMLQuantizationType[kind]
    content = quants.np.random.default_rng(1).normal(size=(6, 512)).astype(np.float32)
    try:
        data = quants.quantize(content, kind)
    except NotImplementedError:  # K-quants: any bytes are a tensor, with scales that are numbers
        data = random_blocks(kind, rows=6, columns=512)
    writer = gguf_files.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("before", np.arange(5, dtype=np.float32))
    writer.add_tensor("it", data, raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    entry = read_header(tmp_path / "a.gguf").tensors["it"]
    theirs = next(one for one in GGUFReader(tmp_path / "a.gguf").tensors if one.name == "it")
    ours = dequantized(entry)
    assert ours.shape == entry.shape == (6, 512)
    assert dtype_of(entry) == str(ours.dtype) == {"F16": "float16", "BF16": "bfloat16"}.get(kind.name, "float32")
    assert np.array_equal(ours.astype(np.float32), quants.dequantize(theirs.data, kind).reshape(6, 512))
    assert np.isfinite(ours.astype(np.float32)).all()
    assert ours.astype(np.float32).std() > 0


def random_blocks(kind, rows, columns):
    """Random K-quant blocks; each float16 in them is replaced by a finite one."""
    block, size = gguf_files.quants.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, (rows * columns // block, size), np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind.name]
    for at in halves:
        data[:, at : at + 2] = rng.normal(size=(len(data), 1)).astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)


def test_a_quantized_model_has_the_weights_of_the_package(tmp_path):
    model = checkpoints.llama(hidden_size=96, intermediate_size=64, head_dim=16)
    tensors = gguf_files.tensors_of(model)
    types = {name: GGMLQuantizationType.Q4_1 for name, array in tensors.items() if array.ndim == 2}
    types["token_embd.weight"] = GGMLQuantizationType.Q8_0
    file = gguf_files.write_model(tmp_path / "model.gguf", model, types)
    for name, parameter in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("down_proj", "ffn_down")):
        tensor = f"blk.1.{parameter}.weight"
        expected = quants.dequantize(quants.quantize(tensors[tensor], types[tensor]), types[tensor])
        if name != "down_proj":  # back to half-split pairs
            heads = SIZES[name]
            expected = expected.reshape(heads, -1, 2, 96).swapaxes(1, 2).reshape(expected.shape)
        layer = sllm_jax.load(file, "float32")[0].params["layers_1"]
        found = layer["mlp" if name == "down_proj" else "self_attn"][name]["weight"]
        assert np.array_equal(np.asarray(found), expected)


SIZES = {"q_proj": 6, "k_proj": 2}


def test_a_type_that_cannot_be_read_is_named(tmp_path):
    tensors = gguf_files.tensors_of(checkpoints.llama())
    writer = gguf_files.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, value in gguf_files.metadata(checkpoints.llama().config).items():
        gguf_files.add_value(writer, f"llama.{key}", value)
    for name, array in tensors.items():
        kind = GGMLQuantizationType.F64 if name == "blk.0.ffn_up.weight" else GGMLQuantizationType.F32
        writer.add_tensor(name, array.astype(np.float64 if kind.name == "F64" else np.float32), raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    with pytest.raises(SllmError, match=r"tensor model.layers.0.mlp.up_proj.weight of type F64: expected one of"):
        sllm_jax.load(tmp_path / "model.gguf")


# the config


def test_metadata_becomes_the_config_of_hugging_face(llama):
    config, module = read_config(llama, np.float32)
    published = checkpoints.llama().config.to_dict()
    for name in ("hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "model_type", "vocab_size"):
        assert config[name] == published[name]
    assert module.config.rope.rope_theta == 10_000.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sliding_window": None}, ["full_attention", "full_attention"]),
        ({"sliding_window_pattern": [False, True]}, ["full_attention", "sliding_attention"]),
        ({"sliding_window_pattern": 2}, ["sliding_attention", "full_attention"]),
        ({}, ["sliding_attention", "sliding_attention"]),
    ],
)
def test_which_layers_of_gemma_3_have_a_window(tmp_path, changes, expected):
    """Without a size llama.cpp gives none of them a window; otherwise five of six have one."""
    model = model_of("gemma3_text", "plain")
    values = gguf_files.metadata(model.config) | {f"attention.{key}": value for key, value in changes.items()}
    values = {key: value for key, value in values.items() if value is not None}
    file = gguf_files.write(tmp_path / "model.gguf", "gemma3", values, gguf_files.tensors_of(model))
    model, _ = sllm_jax.load(file, "float32")
    assert model.hf_config["layer_types"] == expected
    windows = [9 if kind == "sliding_attention" else None for kind in expected]
    assert [layer.sliding_window for layer in model.config.layers] == windows


def test_a_pattern_of_windows_must_have_an_entry_for_each_layer(tmp_path):
    model = model_of("gemma3_text", "plain")
    values = gguf_files.metadata(model.config) | {"attention.sliding_window_pattern": [True]}
    file = gguf_files.write(tmp_path / "model.gguf", "gemma3", values, gguf_files.tensors_of(model))
    with pytest.raises(SllmError, match="sliding_window_pattern must have 2 entries; got 1"):
        sllm_jax.load(file, "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.block_count": None}, "llama.block_count must be a positive integer; got None"),
        ({"llama.embedding_length": 0}, "llama.embedding_length must be a positive integer; got 0"),
        ({"llama.embedding_length": "24"}, "llama.embedding_length must be of type integer or ndarray; got str"),
        ({"llama.block_count": 10**6}, "promises 1000000 layers in 30 tensors"),
        ({"llama.residual_scale": 2.0}, "has metadata that is not supported: llama.residual_scale"),
        ({"llama.attention.sliding_window": 9}, "not supported: llama.attention.sliding_window"),
        (
            {"llama.attention.clamp_kqv": 8.0},
            "not supported: llama.attention.clamp_kqv",
        ),  # that of another architecture
        ({"llama.use_parallel_residual": True}, "not supported: llama.use_parallel_residual"),
        ({"llama.expert_count": 8}, "llama.expert_count .*8.* is not supported"),
        ({"llama.attention.head_count_kv": [2, 3, 2]}, "llama.attention.head_count_kv differs between layers"),
        ({"llama.attention.value_length": 4}, "keys and values of different size"),
        ({"llama.rope.scaling.type": "su"}, "rope.scaling.type 'su' is not supported; known: linear, yarn"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base must be finite"),
        ({"general.architecture": "phi2"}, "has the architecture 'phi2'; supported in GGUF are llama, qwen2"),
        ({"general.architecture": None}, "has no architecture"),
    ],
)
def test_metadata_that_cannot_be_run_is_refused(tmp_path, changes, message):
    config = checkpoints.llama().config
    values = {"general.architecture": "llama"}
    values |= {f"llama.{key}": value for key, value in gguf_files.metadata(config).items()} | changes
    writer = gguf_files.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.kv_data[0].clear()
    for key, value in values.items():
        if value is not None:
            gguf_files.add_value(writer, key, value)
    for name, array in gguf_files.tensors_of(checkpoints.llama()).items():
        writer.add_tensor(name, array)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    with pytest.raises(SllmError, match=message):
        sllm_jax.load(tmp_path / "a.gguf")


def test_sampling_and_ends_come_from_the_metadata(tmp_path):
    model = checkpoints.llama()
    about = {
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 7,
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.5,
    }
    file = gguf_files.write_model(tmp_path / "model.gguf", model, tokenizer=about)
    loaded = sllm_jax.load(file)[0]
    sampling = {"temperature": 0.6, "top_k": 20, "penalty_repeat": 1.5}
    assert loaded.generation_config == {"eos_token_id": [2, 7], "do_sample": True} | sampling
    assert unsupported_keys(loaded.generation_config) == {"penalty_repeat": 1.5}  # which is said


# what else takes a file


@pytest.mark.parametrize("make", ["convert", "to_huggingface"])
def test_it_is_converted(tmp_path, llama, make):
    {"convert": convert, "to_huggingface": to_huggingface}[make](llama, tmp_path / "out")
    assert_same(sllm_jax.load(tmp_path / "out", "float32")[0].params, sllm_jax.load(llama, "float32")[0].params)
    if make == "to_huggingface":
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True).eval()
        with torch.no_grad():
            expected = theirs(torch.tensor(np.asarray(TOKENS)[None])).logits[0].numpy()
        ours = dense_logits(sllm_jax.load(llama, "float32")[0], TOKENS)
        assert np.allclose(ours, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore:int8 weights save memory")
def test_int8_weights_are_made_from_it(tmp_path, llama):
    checkpoints.llama().save_pretrained(tmp_path / "folder")
    ours, theirs = (sllm_jax.load(one, "float32", weights="int8")[0] for one in (llama, tmp_path / "folder"))
    assert_same(ours.params, theirs.params)


def test_a_model_in_parts(tmp_path, llama):
    """As llama-gguf-split writes it: the metadata in the first file, tensors in all."""
    tensors = list(gguf_files.tensors_of(checkpoints.llama()).items())
    for number, some in enumerate((tensors[:4], tensors[4:9], tensors[9:])):
        values = gguf_files.metadata(checkpoints.llama().config) if number == 0 else {}
        write_part(tmp_path / "parts" / f"m-{number + 1:05}-of-00003.gguf", values, some, number)
    first, *_, last = sorted((tmp_path / "parts").iterdir())
    for name in (first, tmp_path / "parts"):
        assert_same(sllm_jax.load(name, "float32")[0].params, sllm_jax.load(llama, "float32")[0].params)
    assert [header.path.name for header in read_headers(first)] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    last.unlink()
    with pytest.raises(SllmError, match=r"is one of 3 parts; absent: m-00003-of-00003.gguf; fetch them too"):
        sllm_jax.load(first)


def write_part(path, values, tensors, number):
    path.parent.mkdir(exist_ok=True)
    writer = gguf_files.GGUFWriter(path, "llama")
    for key, value in values.items():
        gguf_files.add_value(writer, f"llama.{key}", value)
    writer.add_uint16("split.count", 3)
    writer.add_uint16("split.no", number)
    for name, array in tensors:
        writer.add_tensor(name, array)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()


def test_a_folder_with_one_file(tmp_path, llama):
    (tmp_path / "folder").mkdir()
    shutil.copy(llama, tmp_path / "folder" / "x.Q4_0.gguf")
    (tmp_path / "folder" / "mmproj-x.gguf").write_bytes(b"an image encoder")
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert_same(sllm_jax.load(tmp_path / "folder")[0].params, sllm_jax.load(llama)[0].params)
    shutil.copy(llama, tmp_path / "folder" / "y.gguf")
    with pytest.raises(SllmError, match=r"has several GGUF files; give one of them: x.Q4_0.gguf, y.gguf"):
        sllm_jax.load(tmp_path / "folder")


def test_a_file_without_the_suffix(tmp_path, llama):
    """As Ollama stores them."""
    blob = shutil.copy(llama, tmp_path / "sha256-0123")
    assert_same(sllm_jax.load(blob)[0].params, sllm_jax.load(llama)[0].params)


def test_factors_beside_another_scaling_are_refused(tmp_path):
    model = checkpoints.llama(**LLAMAS["llama3"])
    values = gguf_files.metadata(model.config) | {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    file = gguf_files.write(tmp_path / "a.gguf", "llama", values, gguf_files.tensors_of(model))
    with pytest.raises(SllmError, match=r"rope_freqs.weight beside rope.scaling.type 'linear' is not supported"):
        sllm_jax.load(file)


def test_safetensors_come_first(tmp_path, llama):
    checkpoints.save_llama(tmp_path / "folder", seed=1)
    shutil.copy(llama, tmp_path / "folder" / "x.gguf")
    found = sllm_jax.load(tmp_path / "folder", "float32")[0].params["norm"]["scale"]
    assert not np.array_equal(found, sllm_jax.load(llama, "float32")[0].params["norm"]["scale"])
