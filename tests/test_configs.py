"""Hugging Face configs: published ones against PyTorch transformers, and bad ones."""

import json
import re
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
import torch
from conftest import SHARED
from families import FAMILIES as TESTED
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

import sllm_jax
from sllm_jax.common.errors import SllmError
from sllm_jax.convert.assemble import shapes_of
from sllm_jax.convert.families import FAMILIES, family_of, module_for, published
from sllm_jax.models import falcon
from sllm_jax.models.unsupported import refuse_unsupported

FOLDERS = (Path(__file__).parent / "data/configs", SHARED / "data/hf_configs")
PATHS = {str(path.relative_to(folder)): path for folder in FOLDERS for path in sorted(folder.rglob("*.json"))}
FOUND = {name: json.loads(path.read_text()) for name, path in PATHS.items()}
PUBLISHED = [name for name, config in FOUND.items() if config.get("model_type") in published()]
REFUSED = [
    name
    for name, config in FOUND.items()
    if config.get("model_type") not in published() or "quantization_config" in config
]
NONE = [pytest.param("", marks=pytest.mark.skip("needs the shared material"))]
ON_DISK = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}  # a module of transformers 5: its name in checkpoints


def expected_tensors(config):
    """Name and shape of every tensor that today's transformers has for a config; nothing is allocated."""
    options = dict(family_of(config).config.with_current_names(config))
    model_type = options.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))
    renamed = ON_DISK.get(model_type, {})
    return {renamed.get(name, name): tuple(p.shape) for name, p in model.named_parameters()}


def our_tensors(config):
    """The same of the tensors that the family's table asks for."""
    module = module_for(config, jnp.bfloat16)
    shapes, layers = shapes_of(module), module.config.num_hidden_layers
    rules = FAMILIES[module.config.family].table.rules_for(shapes, layers)
    return {name: rule.source_shape(shapes, module.config) for name, rule in rules.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_tensors_of_transformers(name):
    assert our_tensors(FOUND[name]) == expected_tensors(FOUND[name])


@pytest.mark.parametrize("name", REFUSED or NONE)
def test_published_configs_of_other_models_are_refused_in_one_sentence(name, tmp_path):
    shutil.copyfile(PATHS[name], tmp_path / "config.json")
    with pytest.raises(SllmError) as error:
        sllm_jax.load(tmp_path)
    sentence = str(error.value).removeprefix(str(tmp_path))
    assert re.fullmatch(
        r"model_type '\w+[\w-]*' is not supported; .*| holds quantized weights \([\w-]+\); .*", sentence
    )
    assert len(sentence) < 200


FIRST_7B = {
    **{"model_type": "RefinedWebModel", "architectures": ["RWForCausalLM"], "auto_map": {"AutoConfig": "evil.Config"}},
    **{"vocab_size": 101, "hidden_size": 48, "n_head": 6, "n_layer": 2, "multi_query": True, "parallel_attn": True},
    **{"alibi": False, "bias": False, "apply_residual_connection_post_layernorm": False, "layer_norm_epsilon": 1e-5},
}
FIRST_RW = FIRST_7B | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}
FIRST_40B = {name: value for name, value in FIRST_7B.items() if name not in ("multi_query", "parallel_attn")}
FIRST_40B |= {"model_type": "RefinedWeb", "n_head_kv": 3, "parallel_attn": True}


@pytest.mark.parametrize("config", [FIRST_7B, FIRST_RW, FIRST_40B], ids=["7B", "RW", "40B"])
def test_falcons_as_first_published(config):
    assert our_tensors(config) == expected_tensors(config)
    current = family_of(config).config.with_current_names(config)
    assert "auto_map" not in current
    assert "n_head" not in current
    assert module_for(current, jnp.float32).config == module_for(config, jnp.float32).config


def test_the_forms_of_falcon():
    seven, rw, forty = (module_for(config, jnp.float32).config for config in (FIRST_7B, FIRST_RW, FIRST_40B))
    assert (seven.num_key_value_heads, seven.norms, seven.alibi) == (1, ("input_layernorm",) * 2, None)
    assert (rw.num_key_value_heads, rw.parallel_attn, rw.rope.dim, len(rw.alibi.slopes)) == (6, False, 0, 6)
    assert (forty.num_key_value_heads, forty.norms) == (3, ("ln_attn", "ln_mlp"))


GQA = {
    "num_key_value_heads": 3,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_attention_heads": 6,
    "vocab_size": 101,
    "num_hidden_layers": 4,
}
SLIDES = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9}


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({"model_type": "mistral"}, 4096),  # what transformers has where the config does not say
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral", "sliding_window": 7}, 7),
        ({"model_type": "qwen2", "sliding_window": 9}, None),
        (SLIDES | {"max_window_layers": 0}, 9),
        (SLIDES | {"max_window_layers": 4}, None),
        (SLIDES | {"max_window_layers": 0, "sliding_window": None}, None),
        (SLIDES | {"layer_types": ["sliding_attention"] * 4}, 9),
        (SLIDES | {"layer_types": ["full_attention"] * 4}, None),
        ({"model_type": "llama", "sliding_window": 9}, None),
    ],
)
def test_which_models_have_a_sliding_window(options, window):
    assert windows_of(GQA | options) == [window] * 4


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        (SLIDES | {"max_window_layers": 2}, [None, None, 9, 9]),
        (SLIDES | {"layer_types": ["full_attention", "sliding_attention"] * 2}, [None, 9, None, 9]),
        ({"model_type": "mistral", "layer_types": ["sliding_attention", *["full_attention"] * 3]}, [4096, *[None] * 3]),
    ],
)
def test_which_layers_have_a_sliding_window(options, windows):
    assert windows_of(GQA | options) == windows


def windows_of(config):
    read = module_for(config, jnp.float32).config
    return [read.at_layer(i).sliding_window for i in range(read.num_hidden_layers)]


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("mistral", (8, 48 // 8, 131072)),
        ("qwen2", (32, 2, 32768)),
        ("qwen3", (32, 128, 32768)),
        ("llama", (8, 6, 2048)),
    ],
)
def test_what_a_config_does_not_say_is_as_in_transformers(model_type, expected):
    config = GQA | {"model_type": model_type, "num_key_value_heads": None, "num_attention_heads": 8, "hidden_size": 48}
    del config["num_key_value_heads"]
    if model_type in ("qwen2", "qwen3"):
        config |= {"num_attention_heads": 32, "hidden_size": 64}
    ours = module_for(config, jnp.float32).config
    assert (ours.num_key_value_heads, ours.head_dim, ours.max_position_embeddings) == expected
    assert our_tensors(config) == expected_tensors(config)


NEOX = {name: value for name, value in GQA.items() if name != "num_key_value_heads"} | {"model_type": "gpt_neox"}
FALCON = {name: value for name, value in NEOX.items() if name != "intermediate_size"} | {"model_type": "falcon"}
MPT = {"model_type": "mpt", "vocab_size": 101, "d_model": 48, "n_heads": 6, "n_layers": 2}
PHI3 = GQA | {"model_type": "phi3"}
REFUSED = {
    "other layer types": (
        SLIDES | GQA | {"layer_types": ["linear_attention"] * 4},
        "layer_types .* must be a list of 4",
    ),
    "too few layer types": (SLIDES | GQA | {"layer_types": ["full_attention"]}, "layer_types .* must be a list of 4"),
    "no layer types": (SLIDES | GQA | {"layer_types": 5}, "layer_types in config.json must be a list of 4 of full_att"),
    "experts": (
        GQA | {"model_type": "llama", "num_local_experts": 8},
        "not supported in 'llama': num_local_experts = 8",
    ),
    "soft cap": (NEOX | {"final_logit_softcapping": 30.0}, "not supported in 'gpt_neox': final_logit_softcapping = 30"),
    "multiplier": (GQA | {"model_type": "llama", "residual_multiplier": 0.2}, "residual_multiplier = 0.2"),
    "llama with a window": (GQA | {"model_type": "llama", "use_sliding_window": True}, "use_sliding_window = True"),
    "mistral with a bias": (GQA | {"model_type": "mistral", "attention_bias": True}, "attention_bias = True"),
    "unknown rope": (NEOX | {"rope_scaling": {"type": "su", "factor": 2.0}}, "RoPE type 'su' is not supported"),
    "odd share": (NEOX | {"rotary_pct": 0.4}, "'gpt_neox' rotates an even number of dimensions; got 3 of 8"),
    "too much": (NEOX | {"rotary_pct": 2.0}, "'gpt_neox' rotates an even number of dimensions; got 16 of 8"),
    "endless": (
        NEOX | {"rotary_pct": float("inf")},
        "rotary_pct in config.json must be a non-negative number; got inf",
    ),
    "huge": (NEOX | {"rotary_emb_base": 10**400}, "rotary_emb_base in config.json must be a non-negative number"),
    "not a number": (
        NEOX | {"layer_norm_eps": float("nan")},
        "layer_norm_eps in config.json must be a non-negative number",
    ),
    "phi-3 with another rope": (
        PHI3 | {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "RoPE type 'linear' of 'phi3' is not supported; supported are default, longrope",
    ),
    "phi-3 with one factor": (
        PHI3 | {"rope_scaling": {"type": "su", "short_factor": [1.0] * 4}},
        "long_factor of RoPE type 'longrope' must be a list of 4 positive numbers; got None",
    ),
    "dynamic, two dimensions": (
        NEOX | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "RoPE type 'dynamic' needs more than 2 rotated dimensions; got 2",
    ),
    "half a context": (NEOX | {"max_position_embeddings": 100.0}, "must be a positive integer; got 100.0"),
    "no share": (NEOX | {"rotary_pct": 0.1}, "'gpt_neox' rotates an even number of dimensions; got 0 of 8"),
    "neox heads": (NEOX | {"num_attention_heads": 5}, "hidden_size 48 is not a multiple of num_attention_heads 5"),
    "neox activation": (NEOX | {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not supported"),
    "falcon activation": (FALCON | {"activation": "quick_gelu"}, "activation 'quick_gelu' is not supported"),
    "falcon residual": (
        FALCON | {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm = True",
    ),
    "falcon heads": (
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 4},
        "num_attention_heads 6 is not a multiple of num_key_value_heads 4",
    ),
    "falcon norms": (FALCON | {"num_ln_in_parallel_attn": 2}, "got num_ln_in_parallel_attn 2, new_decoder_arch"),
    "falcon context": (FALCON | {"alibi": True, "max_position_embeddings": 0}, "integer for each of max_position_emb"),
    "falcon width": (FALCON | {"ffn_hidden_size": 0}, "needs a positive integer for each of ffn_hidden_size"),
    "falcon serial 40B": (FALCON | {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn False"),
    "mpt without alibi": (
        MPT | {"attn_config": {"alibi": False}},
        "MPT with attn_config.alibi False is not supported; exp",
    ),
    "mpt with biases": (MPT | {"no_bias": False}, "MPT with no_bias False is not supported"),
    "mpt norm": (
        MPT | {"norm_type": "rmsnorm"},
        "norm_type 'rmsnorm' is not supported; expected 'low_precision_layern",
    ),
    "mpt one key for all": (MPT | {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type 'multiquery_att"),
    "mpt prefix": (MPT | {"attn_config": {"prefix_lm": True}}, "attn_config.prefix_lm True is not supported"),
    "mpt logits": (
        MPT | {"logit_scale": "inv_sqrt_d_model"},
        "not supported in 'mpt': logit_scale = 'inv_sqrt_d_model'",
    ),
    "mpt window": (MPT | {"attn_config": {"sliding_window_size": 512}}, "attn_config.sliding_window_size 512 is not"),
    "mpt rope": (MPT | {"attn_config": {"rope": True}}, "attn_config.rope True is not supported; expected False"),
    "mpt group norm": (MPT | {"attn_config": {"qk_gn": True}}, "attn_config.qk_gn True is not supported"),
    "mpt gated": (MPT | {"ffn_config": {"ffn_type": "mptglu"}}, "ffn_config.ffn_type 'mptglu' is not supported"),
    "mpt attention": (MPT | {"attn_config": [1]}, r"attn_config in config.json must be an object; got \[1\]"),
    "mpt context": (MPT | {"max_seq_len": 0}, "needs a positive integer for each of max_seq_len; got max_seq_len = 0"),
    "mpt sizes": (MPT | {"d_model": None}, "needs a positive integer for each of d_model; got d_model = None"),
    "mpt clip": (MPT | {"attn_config": {"clip_qkv": "8"}}, "clip_qkv in config.json must be a non-negative number"),
}


@pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_refused_by_name(config, message):
    with pytest.raises(SllmError, match=message):
        module_for(config, jnp.float32)


LLAMA = GQA | {"model_type": "llama"}
UNKNOWN = {  # what may change a model, and no list of forbidden options could hold
    "an option of tomorrow": (LLAMA | {"value_residual": True}, "in 'llama': value_residual = True"),
    "another family's": (NEOX | {"num_key_value_heads": 2}, "in 'gpt_neox': num_key_value_heads = 2"),
    "several": (FALCON | {"qk_scale": 2, "head_mix": [1]}, r"in 'falcon': qk_scale = 2, head_mix = \[1\]"),
    "sliding in a llama's layers": (LLAMA | {"layer_types": ["sliding_attention"] * 4}, "in 'llama': layer_types = "),
    "of attention": (MPT | {"attn_config": {"kv_n_heads": 2}}, "in attn_config of MPT: kv_n_heads = 2"),
    "of the feed-forward network": (MPT | {"ffn_config": {"glu": True}}, "in ffn_config of MPT: glu = True"),
    "many": (LLAMA | {f"option_{i}": 1 for i in range(99)}, "in 'llama': .*, option_9 = 1, and 89 more; remove"),
}


@pytest.mark.parametrize(("config", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_option_is_refused_with_its_value_and_what_to_do(config, message):
    with pytest.raises(SllmError, match=f"^config.json has unknown options {message}") as error:
        module_for(config, jnp.float32)
    assert str(error.value).endswith("; remove them from config.json if they do not change what the model computes")


def test_the_activation_of_an_mpt_is_checked():
    with pytest.raises(SllmError, match=r"ffn_config.ffn_act_fn .'name': 'silu'. is not supported; expected"):
        module_for(MPT | {"ffn_config": {"ffn_act_fn": {"name": "silu"}}}, jnp.float32)


@pytest.mark.parametrize("off", [None, False, 0, 0.0, "", [], {}])
@pytest.mark.parametrize("config", [LLAMA, NEOX, FALCON, MPT], ids=lambda config: config["model_type"])
def test_an_unknown_option_that_is_off_passes(config, off):
    plain = module_for(config, jnp.float32)
    assert module_for(config | {"value_residual": off, "num_local_experts": off}, jnp.float32) == plain


HARMLESS = {
    **{"unsloth_fixed": True, "unsloth_version": "2026.1", "_attn_implementation": "eager", "_name_or_path": "a/b"},
    **{"pretraining_tp": 2, "auto_map": {"AutoConfig": "a.B"}, "attention_dropout": 0.1, "resid_pdrop": 0.1},
    **{"attn_implementation": "sdpa", "cache_implementation": "static", "weights": "int8", "is_causal": True},
    **{"layer_types": ["full_attention"] * 4, "max_window_layers": 28, "logit_scale": 1.0, "temperature": 0.7},
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("config", [LLAMA, NEOX, FALCON, MPT], ids=lambda config: config["model_type"])
def test_what_changes_nothing_passes(config, name):
    assert module_for(config | {name: HARMLESS[name]}, jnp.float32) == module_for(config, jnp.float32)


def test_what_every_config_of_transformers_has_passes():
    base = PretrainedConfig().to_dict() | PretrainedConfig(output_attentions=True, num_labels=3).to_dict()
    refuse_unsupported(base)


def test_what_a_family_understands_passes():
    config = {"num_local_experts": 8, "value_residual": True, "architectures": ["A"]}
    refuse_unsupported(config, {"num_local_experts", "value_residual"})
    with pytest.raises(SllmError, match=r"not supported in None: num_local_experts = 8$"):
        refuse_unsupported(config, {"value_residual"})
    with pytest.raises(SllmError, match="unknown options in None: value_residual = True; remove"):
        refuse_unsupported(config, {"num_local_experts"})


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_a_family_has_one_name_and_defaults_for_each_model_type(name, family):
    assert family.config.family == name
    current = {family.config.with_current_names({"model_type": served})["model_type"] for served in family.model_types}
    assert family.config.defaults.keys() == current


@pytest.mark.parametrize("model_type", published())
def test_the_options_that_are_listed_are_understood(model_type):
    entry = published()[model_type]
    options = set(re.findall(r"\w+_\w+|alibi|bias|activation", entry.options)) - {"attn_config"}
    shared = {"rope_scaling", "partial_rotary_factor", "tie_word_embeddings"}
    understood = {*family_of({"model_type": model_type}).config.defaults.get(model_type, {}), *shared}
    inner = {"clip_qkv", "qk_ln", "softmax_scale", "alibi_bias_max"} if model_type == "mpt" else set()
    assert options - understood - inner == set()


DEFAULTS = [(name, model_type) for name, family in FAMILIES.items() for model_type in family.config.defaults]


@pytest.mark.parametrize(("family", "model_type"), DEFAULTS)
def test_the_defaults_are_those_of_transformers(family, model_type):
    """Where both state one: transformers sets the window of a Qwen only if it is switched on."""
    theirs, ours = AutoConfig.for_model(model_type).to_dict(), FAMILIES[family].config.defaults[model_type]
    common = [name for name in ours if ours[name] is not None and theirs.get(name) is not None]
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}
    assert len(common) >= 3


def test_the_norms_of_a_falcon_are_made_in_a_fixed_order(monkeypatch):
    made = []
    monkeypatch.setattr(falcon, "layer_norm", lambda epsilon, dtype, name: made.append(name) or jnp.tanh)
    config = module_for(FALCON, jnp.float32).config
    pairs = [(f"a{i}", f"b{i}") for i in range(20)] + [("both", "both")]
    for norms in pairs:
        falcon.FalconLayer.parts(SimpleNamespace(config=replace(config, norms=norms), dtype=jnp.float32))
    assert made == [*chain(*pairs[:-1]), "both"]


@pytest.mark.parametrize(
    "options",
    [
        {"rope_theta": 20_000.0},
        {"partial_rotary_factor": 1.0},
        {"rotary_emb_base": 500.0, "rope_theta": 20_000.0, "rotary_pct": 0.5, "partial_rotary_factor": 1.0},
        {"rotary_pct": 0.5, "rope_parameters": {"rope_theta": 77.0, "partial_rotary_factor": 1.0}},
        {"rotary_emb_base": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 77.0}},
    ],
)
def test_the_rotary_options_of_a_neox_have_the_precedence_of_transformers(options):
    theirs = AutoConfig.for_model(**NEOX | json.loads(json.dumps(options))).rope_parameters
    ours = module_for(NEOX | options, jnp.float32).config.rope
    assert (ours.rope_theta, ours.dim) == (theirs["rope_theta"], int(8 * theirs["partial_rotary_factor"]))


ON_BY_DEFAULT = ("scale_attn_weights", "use_rope", "normalize_before", "do_layer_norm_before")


@pytest.mark.parametrize("name", ON_BY_DEFAULT)
@pytest.mark.parametrize("config", [LLAMA, NEOX, FALCON, MPT], ids=lambda config: config["model_type"])
def test_an_option_that_is_on_by_default_is_refused_where_it_is_off(config, name):
    with pytest.raises(SllmError, match=f"config.json asks for what is not supported in .*: {name} = False"):
        module_for(config | {name: False}, jnp.float32)
    assert module_for(config | {name: True}, jnp.float32) == module_for(config, jnp.float32)


def test_a_familys_own_name_and_the_model_type_are_two_fields():
    config = module_for(GQA | {"model_type": "qwen2"}, jnp.float32).config
    assert (config.family, config.model_type) == ("llama", "qwen2")


def test_every_model_type_is_tested_against_transformers():
    published_first = {"RefinedWeb", "RefinedWebModel"}
    assert {*TESTED, "llama"} | published_first == published().keys()
