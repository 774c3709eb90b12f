"""Llama against PyTorch transformers, and a trained checkpoint."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference import ListModel
from test_position import KINDS
from transformers import LlamaConfig, LlamaForCausalLM

from sllm_jax.common.errors import SllmError
from sllm_jax.convert.families import module_for
from sllm_jax.core.attention import attend_causally
from sllm_jax.core.decode import init_carry, prefill
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.loading.pretrained import load
from sllm_jax.text.tokenizer import encode

TOLERANCE = 1e-4  # of logits, float32 on both sides

BASE = {  # all sizes differ
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def for_heads_of_10(options):
    """RoPE options with 5 factors where there are lists of them."""
    return {name: value[:5] if isinstance(value, list) else value for name, value in options.items()}


VARIANTS = {
    "grouped queries": {},
    "all heads their own": {"num_key_value_heads": 6, "head_dim": 8},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "both biases, tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "gelu": {"hidden_act": "gelu"},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    **{
        f"rope {name}": {"rope_parameters": {"rope_theta": 500.0, "rope_type": name} | for_heads_of_10(options)}
        for name, options in KINDS.items()
    },
}


def random_llama(folder, **options):
    """A random Llama of transformers, saved to `folder`; biases too are random, so that a lost one shows."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**BASE | options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("length", [50, 90])  # within the trained context, and past it
def test_dense_logits_equal_those_of_transformers(tmp_path, options, length):
    theirs = random_llama(tmp_path, **options)
    ours, _ = load(tmp_path, dtype="float32")
    tokens = np.random.default_rng(0).integers(0, 101, length)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens[None])).logits[0].numpy()
    nothing = ((jnp.zeros(0), jnp.zeros(0)),) * 3
    attend = attend_causally(ours.config, ours.dtype, length)
    causal, _ = ours.module.apply({"params": ours.params}, jnp.array(tokens), nothing, (attend,) * len(nothing))
    np.testing.assert_allclose(causal, expected, atol=TOLERANCE)
    dense = prefill(ours, init_carry(ours, 0, length - 1), tokens)
    np.testing.assert_allclose(dense.logits, expected[-1], atol=TOLERANCE)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_streaming_equals_the_list_for_every_option(tmp_path, options):
    random_llama(tmp_path, **options)
    ours, _ = load(tmp_path, dtype="float32")
    tokens = np.random.default_rng(1).integers(0, 101, 90)
    logits = prefill(ours, init_carry(ours, 3, 20), tokens).logits
    expected = ListModel(ours, 3, 20).extend(tokens)[-1]
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_logits_of_a_trained_checkpoint(shared):
    folder = shared / "data/checkpoints"
    expected = json.loads((folder / "golden.json").read_text())["stories260K"]
    model, tokenizer = load(folder / "stories260K-hf", dtype="float32")
    tokens = encode(tokenizer, expected["prompt"], start=True)
    np.testing.assert_array_equal(tokens, expected["prompt_ids"])
    nothing = ((jnp.zeros(0), jnp.zeros(0)),) * model.config.num_hidden_layers
    attend = attend_causally(model.config, model.dtype, len(tokens))
    logits, _ = model.module.apply({"params": model.params}, jnp.array(tokens), nothing, (attend,) * len(nothing))
    golden = np.load(folder / "golden_logits.npz")
    np.testing.assert_allclose(logits, golden["stories260K_prompt_logits"], atol=TOLERANCE)
    assert logits.argmax(-1).tolist() == expected["prompt_argmax"]


def test_bfloat16_stays_within_one_percent_of_float32(shared):
    folder = shared / "data/checkpoints/stories260K-hf"
    text = (shared / "data/text/tinystories/tinystories_valid_part.txt").read_text()[:6000]
    exact, tokenizer = load(folder, dtype="float32")
    coarse, _ = load(folder, dtype="bfloat16")
    tokens = encode(tokenizer, text, start=True)
    nll = [np.concatenate(list(token_nll(model, tokens, "streaming", 4, 252))) for model in (exact, coarse)]
    assert abs(nll[1].mean() / nll[0].mean() - 1) < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"),
        ({"hidden_size": None}, "config.json needs a positive integer for each of hidden_size; got hidden_size = None"),
        ({"head_dim": 7}, "RoPE .default. of .llama. rotates whole heads of even size; got 7 of 7"),
        ({"partial_rotary_factor": 0.4}, "RoPE .default. of .llama. rotates whole heads of even size; got 4 of 10"),
        ({"num_key_value_heads": "4"}, "num_key_value_heads in config.json must be a non-negative integer; got '4'"),
        ({"num_key_value_heads": -3}, "num_key_value_heads in config.json must be a non-negative integer; got -3"),
        ({"head_dim": 8.0}, "config.json needs a positive integer for each of head_dim; got head_dim = 8.0"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps in config.json must be a non-negative number; got 'tiny'"),
        ({"attention_bias": 1}, "attention_bias in config.json must be true or false; got 1"),
        (
            {"max_position_embeddings": "512"},
            "max_position_embeddings in config.json must be a positive integer; got '512'",
        ),
        ({"rope_theta": -1}, "rope_theta in config.json must be a positive number; got -1"),
        ({"hidden_act": ["silu"]}, "hidden_act .'silu'. is not supported"),
        ({"model_type": ["llama"]}, "model_type .'llama'. is not supported"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not supported; supported are silu"),
        ({"model_type": "bert"}, "model_type 'bert' is not supported; supported are"),
    ],
)
def test_a_config_that_cannot_run_is_refused(change, message):
    with pytest.raises(SllmError, match=message.replace("[", ".")):
        module_for({"model_type": "llama"} | BASE | change, jnp.float32)


@pytest.mark.parametrize(
    "name",
    [
        *("Llama-2-7b-hf", "Llama-2-7b-chat-hf", "Llama-3.1-8B", "Llama-3.2-1B", "TinyLlama-1.1B-Chat-v1.0"),
        *("reduced_for_tests/llama", "reduced_for_tests/llama3"),
    ],
)
def test_published_configs_are_read(shared, name):
    config = json.loads((shared / f"data/hf_configs/{name}.json").read_text())
    read_config = module_for(config, jnp.bfloat16).config
    assert read_config.hidden_size == config["hidden_size"]
    assert read_config.rope.rope_type == (config.get("rope_scaling") or {}).get("rope_type", "default")
