"""The converted checkpoint, and its export to a Hugging Face folder."""

import json
import sys

import checkpoints
import jax
import numpy as np
import pytest
import torch
from checkpoints import Q_PROJ, VARIANTS, assert_same, assert_same_tensors, load, module_of, problems
from transformers import LlamaForCausalLM

from sllm_jax import convert
from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import load_config, new_folder
from sllm_jax.convert import export, orbax
from sllm_jax.convert.dtypes import FLOATS
from sllm_jax.core.model import Model


@pytest.fixture
def folder(tmp_path):
    checkpoints.save_llama(tmp_path / "hf")
    return tmp_path / "hf"


# the converted checkpoint


def with_companions(folder):
    """Put all files that belong beside the weights into a folder, and one that does not."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json")
    names += ("vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja", "generation_config.json")
    for name in names:
        (folder / name).write_text(f'{{"from": "{name}"}}')
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    return names


def mix_dtypes(folder):
    """Norms in float32, the rest in bfloat16, one matrix in float16."""

    def mix(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor if "norm" in name else tensor.bfloat16()
        tensors[Q_PROJ] = tensors[Q_PROJ].half()

    checkpoints.rewrite(folder, mix)


@pytest.mark.parametrize(("dtype", "options"), list(zip(FLOATS, VARIANTS, strict=True)))
def test_there_and_back_is_exact(tmp_path, dtype, options):
    hf, converted, back = tmp_path / "hf", tmp_path / "converted", tmp_path / "back"
    checkpoints.save_llama(hf, getattr(torch, dtype), **options)
    convert.convert(hf, converted)
    convert.to_huggingface(converted, back)
    assert_same_tensors(checkpoints.tensors_of(back), checkpoints.tensors_of(hf))
    assert load_config(back) == load_config(hf)
    for target in FLOATS:
        assert_same(load(converted, target), load(hf, target))


def test_there_and_back_keeps_each_tensors_dtype(tmp_path, folder):
    mix_dtypes(folder)
    convert.convert(folder, tmp_path / "converted")
    convert.to_huggingface(tmp_path / "converted", tmp_path / "back")
    assert_same_tensors(checkpoints.tensors_of(tmp_path / "back"), checkpoints.tensors_of(folder))


def test_companions_travel_along(tmp_path, folder):
    names = with_companions(folder)
    convert.convert(folder, tmp_path / "converted")
    convert.to_huggingface(tmp_path / "converted", tmp_path / "back")
    assert {path.name for path in (tmp_path / "converted").iterdir()} == {*names, "config.json", "params"}
    assert {path.name for path in (tmp_path / "back").iterdir()} == {*names, "config.json", "model.safetensors"}
    for name in names:
        assert (tmp_path / "back" / name).read_text() == (folder / name).read_text()


@pytest.mark.parametrize("write", [convert.convert, convert.to_huggingface])
def test_written_in_another_dtype(tmp_path, folder, write):
    write(folder, tmp_path / "out", dtype="bfloat16")
    assert_same(load(tmp_path / "out", "bfloat16"), load(folder, "bfloat16"))
    assert load_config(tmp_path / "out")["dtype"] == "bfloat16"
    assert_same(load(tmp_path / "out"), jax.tree.map(lambda leaf: leaf.astype("float32"), load(folder, "bfloat16")))


@pytest.mark.parametrize("write", [convert.convert, convert.to_huggingface])
def test_what_exists_is_not_overwritten(tmp_path, folder, write):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SllmError, match=r"out exists already; name a new folder$"):
        write(folder, out)
    assert not list(out.iterdir())


@pytest.mark.parametrize("write", [convert.convert, convert.to_huggingface])
def test_a_bad_checkpoint_leaves_nothing_behind(tmp_path, folder, write):
    checkpoints.rewrite(folder, lambda tensors: tensors.pop(Q_PROJ))
    with pytest.raises(SllmError, match=r"missing tensor"):
        write(folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("write", [convert.convert, convert.to_huggingface])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_crash_leaves_nothing_behind(tmp_path, folder, write, error, monkeypatch):
    def crash(*_):
        assert [path.name for path in tmp_path.iterdir() if path != folder] != ["out"]
        raise error

    monkeypatch.setattr(convert, "copy_companions", crash)  # after the weights, before the move
    with pytest.raises(error):
        write(folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("error", [ValueError("no space left"), KeyboardInterrupt()])
def test_writes_that_orbax_has_given_up_leave_nothing_behind(tmp_path, error, monkeypatch):
    writes = iter([True, False, True, *[False] * 8, True])  # one of them, or none, in each wait

    def save(self, path, params):
        def sleep(seconds):
            if next(writes, False):
                (path.with_name("params.orbax-checkpoint-tmp") / "d").mkdir(parents=True)

        monkeypatch.setattr("time.sleep", sleep)
        raise error

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointer.save", save)
    monkeypatch.setattr("sys.unraisablehook", sys.unraisablehook)  # a failure changes it
    expected = SllmError if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(expected), new_folder(tmp_path / "out") as unfinished:
        orbax.save(unfinished, {"a": np.zeros(3)})
    assert list(writes) == []
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SllmError, match=r"out could not be written: "), new_folder(tmp_path / "file" / "out"):
        pytest.fail("not reached")


@pytest.mark.parametrize("broken", ["_METADATA", "manifest.ocdbt"])
def test_a_broken_converted_checkpoint(tmp_path, folder, broken):
    convert.convert(folder, tmp_path / "out")
    (tmp_path / "out" / "params" / broken).write_bytes(b"")
    with pytest.raises(SllmError, match=r"is not a complete Orbax checkpoint|is damaged"):
        load(tmp_path / "out")
    (tmp_path / "out" / "params" / broken).unlink()
    with pytest.raises(SllmError, match=r"is not a complete Orbax checkpoint|is damaged"):
        load(tmp_path / "out")


def test_damaged_data_of_a_converted_checkpoint(tmp_path, folder):
    convert.convert(folder, tmp_path / "out")
    largest = max((tmp_path / "out" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(b"\0" * (len(content) // 2) + content[len(content) // 2 :])
    with pytest.raises(SllmError, match=r"is damaged: .* cannot be read; convert the model again"):
        load(tmp_path / "out")


def test_a_converted_checkpoint_that_does_not_fit_its_config(tmp_path, folder):
    convert.convert(folder, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(load_config(folder) | {"vocab_size": 103, "num_hidden_layers": 2}))
    lines = problems(tmp_path / "out")
    assert "misshapen tensor embed_tokens/embedding: expected (103, 24), got (101, 24)" in lines
    assert "unknown tensor layers_2/input_layernorm/scale of shape (24,)" in lines


def test_orbax_itself_restores_the_converted_checkpoint(tmp_path, folder):
    import orbax.checkpoint as ocp

    convert.convert(folder, tmp_path / "out")
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "out" / orbax.PARAMS), load(folder))


# back to Hugging Face


@pytest.mark.parametrize("options", VARIANTS)
def test_transformers_loads_what_is_written(tmp_path, options):
    model = checkpoints.save_llama(tmp_path / "hf", **options)
    convert.convert(tmp_path / "hf", tmp_path / "converted")
    convert.to_huggingface(tmp_path / "converted", tmp_path / "back")
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_model_becomes_a_hugging_face_folder(tmp_path, folder):
    hf_config, module = load_config(folder), module_of(folder, "bfloat16")
    model = Model(module, load(folder, "bfloat16"), hf_config, {"top_k": 3})
    convert.to_huggingface(model, tmp_path / "back")
    with pytest.raises(SllmError, match=r"no hf_config"):
        convert.to_huggingface(Model(module, model.params), tmp_path / "no-config")
    convert.to_huggingface(model, tmp_path / "wide", dtype="float32")
    assert_same(load(tmp_path / "wide"), jax.tree.map(lambda leaf: leaf.astype("float32"), model.params))
    expected = {name: tensor.bfloat16() for name, tensor in checkpoints.tensors_of(folder).items()}
    assert_same_tensors(checkpoints.tensors_of(tmp_path / "back"), expected)
    assert load_config(tmp_path / "back") == hf_config | {"dtype": "bfloat16"}
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == {"top_k": 3}


def test_large_checkpoints_are_cut_into_shards(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 20_000)
    convert.to_huggingface(folder, tmp_path / "back")
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in checkpoints.tensors_of(folder).values())
    assert max(path.stat().st_size for path in (tmp_path / "back").glob("*.safetensors")) < 22_000
    assert_same_tensors(checkpoints.tensors_of(tmp_path / "back"), checkpoints.tensors_of(folder))
    assert_same(load(tmp_path / "back"), load(folder))
    LlamaForCausalLM.from_pretrained(tmp_path / "back")
