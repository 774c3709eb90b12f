"""Checkpoint variants: tied or untied, or not a language model at all."""

import json

import checkpoints
import jax
import numpy as np
import pytest
import torch
from checkpoints import Q_PROJ, assert_same, load, refusal

import sllm_jax
from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import load_config
from sllm_jax.convert import convert, to_huggingface

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    checkpoints.save_llama(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tied(tmp_path):
    checkpoints.save_llama(tmp_path / "tied", tie_word_embeddings=True)
    return tmp_path / "tied"


# tied to the embedding, or not


@pytest.mark.parametrize("pickled", [False, True])
def test_tied_and_only_the_head_is_stored(tied, pickled):
    expected = load(tied)
    checkpoints.rewrite(tied, lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}))
    if pickled:
        checkpoints.to_pickle(tied)
    assert_same(load(tied), expected)


def test_tied_and_only_the_head_is_stored_by_save_model(tied):
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM

    expected = load(tied)
    theirs = AutoModelForCausalLM.from_pretrained(tied)
    (tied / "model.safetensors").unlink()
    save_model(theirs, str(tied / "model.safetensors"))
    assert_same(load(tied), expected)


def test_tied_and_neither_is_stored_is_one_missing_tensor(tied):
    checkpoints.rewrite(tied, lambda tensors: tensors.pop(EMBEDDING))
    assert refusal(tied) == "missing tensor model.embed_tokens.weight of shape (101, 24)"


@pytest.mark.parametrize("pickled", [False, True])
def test_tied_in_the_config_but_two_matrices_loads_untied_with_a_warning(tied, tmp_path, pickled):
    checkpoints.rewrite(tied, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] * 2}))
    if pickled:
        checkpoints.to_pickle(tied)
    with pytest.warns(
        UserWarning, match="ties the head to the embedding, but the checkpoint has two different matrices"
    ):
        model, _ = sllm_jax.load(tied, "float32")
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(
        model.params["lm_head"]["weight"], 2 * np.asarray(model.params["embed_tokens"]["embedding"])
    )
    with pytest.warns(UserWarning, match="ties the head"):
        convert(tied, tmp_path / "converted")
    again, _ = sllm_jax.load(tmp_path / "converted", "float32")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    to_huggingface(model, tmp_path / "back")
    assert load_config(tmp_path / "back")["tie_word_embeddings"] is False


# one sentence


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "gptq", "modules_to_not_convert": ["a" * 100] * 10_000}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ("int4", "bitsandbytes"),
        ({"quant_method": 5}, "5"),
        ({"quant_method": ["awq\n"] * 10_000}, str(["awq\n"] * 10)[:40]),
    ],
)
def test_of_a_quantized_config_the_method_is_told(folder, quantization, method):
    change_config(folder, quantization_config=quantization)
    assert refusal(folder).endswith(
        f"holds quantized weights ({method}); give a float32, float16 or bfloat16 checkpoint"
    )


def test_the_model_type_is_checked_first(folder):
    change_config(folder, model_type="mamba", quantization_config={"quant_method": "gptq"}, hidden_size="many")
    assert refusal(folder).startswith("model_type 'mamba' is not supported; supported are llama, ")


@pytest.mark.parametrize(
    "change", [{"hidden_act": "a" * 10**6}, {"vocab_size": "1" * 10**6}, {"model_type": [1] * 10**6}]
)
def test_a_value_of_any_length_is_cut(folder, change):
    change_config(folder, **change)
    assert len(refusal(folder)) < 1000


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda t: t.update({f"base_model.model.{Q_PROJ[:-7]}.lora_A.weight": torch.ones(2)}),
            "a LoRA adapter; merge it",
        ),
        (lambda t: t.update({Q_PROJ.replace("weight", "qweight"): t.pop(Q_PROJ)}), "quantized weights"),
        (lambda t: t.update({"model.layers.0.mlp.experts.3.w1.weight": torch.ones(2)}), "a mixture of experts"),
        (lambda t: t.update({"score.weight": t.pop(HEAD)}), "a reward model or classifier"),
        (lambda t: t.update({"visual.patch_embed.weight": torch.ones(2)}), "a model of text and images"),
        (lambda t: [t.pop(name) for name in [*t] if ".layers.2." in name], "a model of 2 layers, or a part of one"),
        (lambda t: t.update({EMBEDDING: torch.ones(107, 24)}), "a model with an embedding of (107, 24) (tokens, size)"),
        (
            lambda t: [t.update({f"encoder.{i}": t.pop(name)}) for i, name in enumerate([*t])],
            "another architecture than the 'llama' of config.json",
        ),
    ],
)
def test_the_first_line_says_what_the_checkpoint_looks_like(folder, change, what):
    checkpoints.rewrite(folder, lambda tensors: change(tensors) and None)
    summary, *lines = refusal(folder).split("\n")
    assert f"; this looks like {what}" in summary
    assert len(lines) <= 11
    if len(lines) > 10:
        assert lines[10] == f"and {int(summary.split()[0]) - 10} more"


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float64_is_cast(folder, pickled, dtype):
    expected = load(folder, dtype)
    checkpoints.rewrite(folder, lambda tensors: tensors.update({name: t.double() for name, t in tensors.items()}))
    if pickled:
        checkpoints.to_pickle(folder)
    assert_same(load(folder, dtype), expected)


def test_float64_is_converted_to_float32(folder, tmp_path):
    checkpoints.rewrite(folder, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].double()}))
    convert(folder, tmp_path / "out")
    assert_same(load(tmp_path / "out"), load(folder))


# something else


def test_an_embedder_is_refused(folder):
    change_config(folder, is_causal=False)
    assert refusal(folder).startswith("config.json says is_causal = False: an embedder")
    change_config(folder, is_causal=None, use_bidirectional_attention=True)
    assert refusal(folder).endswith("use_bidirectional_attention = True")


@pytest.mark.parametrize(
    "name", ["LlamaForSequenceClassification", "MistralRewardModel", "Qwen2ForTokenClassification"]
)
def test_a_reward_model_or_classifier_is_refused(folder, name):
    change_config(folder, architectures=[name])
    assert refusal(folder) == (
        f"config.json is of a {name}: a classifier or reward model, which writes no text; "
        "give the language model that it was made from"
    )


@pytest.mark.parametrize("says", ["nothing", "LlamaForCausalLM"])
def test_a_reward_model_that_its_config_does_not_tell_is_refused(tied, says):
    """One sentence, as the embedding is tied: the head of the reward is all that does not fit."""
    change_config(tied, architectures=[says] if says != "nothing" else None)
    checkpoints.rewrite(tied, lambda tensors: tensors.update({"score.weight": torch.ones(1, 24)}))
    assert refusal(tied) == (
        "unknown tensor score.weight of shape (1, 24); this looks like a reward model or classifier, which generates "
        "no text; give the language model that it was made from"
    )


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForCausalLM", None])
def test_a_bare_model_without_a_head_is_one_sentence(folder, architecture):
    change_config(folder, architectures=architecture and [architecture])
    checkpoints.rewrite(folder, lambda tensors: tensors.pop(HEAD))
    assert refusal(folder) == (
        "missing tensor lm_head.weight of shape (101, 24); this looks like a model without its head, such as an "
        "embedding model; give a checkpoint with a head"
    )


@pytest.mark.parametrize(
    ("architectures", "architecture"),
    [(["LlamaModel"], "LlamaModel"), (["MistralModel"], "MistralModel"), ([5, "LlamaModel"], "LlamaModel")],
)
def test_a_tied_bare_model_loads_with_a_warning(tied, architectures, architecture):
    expected = load(tied)
    checkpoints.rewrite(tied, lambda tensors: [tensors.update({name[6:]: tensors.pop(name)}) for name in [*tensors]])
    change_config(tied, architectures=architectures)
    with pytest.warns(UserWarning, match=f"names a {architecture}, which has no head"):
        model, _ = sllm_jax.load(tied, "float32")
    assert_same(model.params, expected)


@pytest.mark.parametrize(
    "architectures", [["LlamaForCausalLM"], ["LlamaLMHeadModel"], ["LlamaModel", "X"], [], None, "x"]
)
def test_a_tied_model_with_its_head_loads_without_a_warning(tied, architectures):
    change_config(tied, architectures=architectures)
    sllm_jax.load(tied, "float32")


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "but a PEFT adapter (merge it into its base model first",
        ),
        (["consolidated.00.pth", "params.json"], "but weights in the original format"),
        (["tf_model.h5"], "but TensorFlow weights"),
    ],
)
@pytest.mark.parametrize("has_config", [False, True])
def test_a_folder_of_something_else_is_named(folder, files, what, has_config):
    (folder / "model.safetensors").unlink()
    if not has_config:
        (folder / "config.json").unlink()
    for name in files:
        (folder / name).write_bytes(b"x")
    message = refusal(folder)
    assert what in message
    assert "\n" not in message


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float16", "torch.float32"])
def test_the_dtypes_of_pytorch_are_understood(folder, dtype):
    model, _ = sllm_jax.load(folder, getattr(torch, dtype.removeprefix("torch.")))
    assert np.dtype(model.dtype).name == dtype.removeprefix("torch.")


def test_other_dtypes_of_pytorch_are_refused(folder):
    with pytest.raises(SllmError, match=r"dtype must be one of float32, bfloat16, float16; got torch\.int8"):
        sllm_jax.load(folder, torch.int8)


def test_convert_keeps_additional_chat_templates(folder, tmp_path):
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("{{ messages }}")
    convert(folder, tmp_path / "out")
    to_huggingface(tmp_path / "out", tmp_path / "back")
    for out in ("out", "back"):
        assert (tmp_path / out / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize("factor", [4.0, 2.0])
def test_the_trained_context_of_vicuna_16k_is_the_longer_one(folder, factor):
    change_config(folder, max_sequence_length=16384, rope_scaling={"type": "linear", "factor": factor})
    assert sllm_jax.load(folder)[0].config.max_position_embeddings == 16384


@pytest.mark.parametrize("change", [{"max_sequence_length": 16}, {"max_sequence_length": None}])
def test_a_shorter_max_sequence_length_changes_nothing(folder, change):
    before = sllm_jax.load(folder)[0].config.max_position_embeddings
    change_config(folder, rope_scaling={"type": "linear", "factor": 4.0}, **change)
    assert sllm_jax.load(folder)[0].config.max_position_embeddings == before


def test_without_linear_rope_max_sequence_length_says_nothing(folder):
    before = sllm_jax.load(folder)[0].config.max_position_embeddings
    change_config(folder, max_sequence_length=16384)
    assert sllm_jax.load(folder)[0].config.max_position_embeddings == before
