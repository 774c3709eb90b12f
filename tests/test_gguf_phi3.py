"""GGUF files of Phi-3: the tensors with longrope's factors, and files in which they are damaged or out of place."""

import checkpoints
import families
import gguf_files
import numpy as np
import pytest

import sllm_jax
from sllm_jax.common.errors import SllmError
from sllm_jax.convert import gguf_rope


@pytest.mark.parametrize("kind", ["short", "long"])
def test_a_phi_3_with_one_list_of_factors_is_refused(tmp_path, kind):
    model = families.random_model("phi3", "longrope")
    tensors = gguf_files.tensors_of(model)
    del tensors[f"rope_factors_{kind}.weight"]
    file = gguf_files.write(tmp_path / "model.gguf", "phi3", gguf_files.metadata(model.config), tensors)
    with pytest.raises(SllmError, match=r"must have both rope_factors_short.weight and .*, with 4 factors each; got "):
        sllm_jax.load(file)


def test_a_phi_3_with_too_many_factors_is_refused_before_they_are_read(tmp_path, monkeypatch):
    model = families.random_model("phi3", "longrope")
    tensors = gguf_files.tensors_of(model) | {"rope_factors_long.weight": np.ones(5, np.float32)}
    file = gguf_files.write(tmp_path / "model.gguf", "phi3", gguf_files.metadata(model.config), tensors)
    monkeypatch.setattr(gguf_rope, "dequantized", None)
    with pytest.raises(SllmError, match=r"with 4 factors each; got .*, rope_factors_long.weight \(5,\)"):
        sllm_jax.load(file)


def test_a_phi_3_with_two_kinds_of_rope_is_refused(tmp_path):
    model = families.random_model("phi3", "longrope")
    values = gguf_files.metadata(model.config) | {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    file = gguf_files.write(tmp_path / "model.gguf", "phi3", values, gguf_files.tensors_of(model))
    with pytest.raises(SllmError, match=r"has RoPE type 'linear' beside the factors of longrope"):
        sllm_jax.load(file)


@pytest.mark.parametrize("name", ["rope_factors_long.weight", "rope_factors_short.weight"])
def test_factors_that_an_architecture_does_not_read_are_refused(tmp_path, name):
    model = checkpoints.llama()
    tensors = gguf_files.tensors_of(model) | {name: np.ones(8, np.float32)}
    file = gguf_files.write(tmp_path / "model.gguf", "llama", gguf_files.metadata(model.config), tensors)
    with pytest.raises(SllmError, match=name):
        sllm_jax.load(file)
