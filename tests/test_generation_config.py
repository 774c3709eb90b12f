"""generation_config.json: supported options, warnings about others, and invalid files."""

import warnings
from dataclasses import replace

import pytest
from transformers import GenerationConfig

from sllm_jax.common.errors import SllmError
from sllm_jax.core.sampling import sampling_for
from sllm_jax.models.generation_config import stop_strings, unsupported_keys
from sllm_jax.streams.stream import Stream


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_repeat_ngram_size", 3),
        ("suppress_tokens", [5]),
        ("bad_words_ids", [[5, 6]]),
        ("num_beams", 4),
        ("typical_p", 0.9),
        ("guidance_scale", 1.5),
        ("min_new_tokens", 10),
        ("sequence_bias", [[[5], -1.0]]),
    ],
)
def test_what_the_model_asks_for_and_does_not_get_is_said_once(loaded, name, value):
    model, tokenizer = loaded
    asking = replace(model, generation_config={"do_sample": True, name: value, "top_k": 5})
    with pytest.warns(UserWarning, match=rf"^{name}=.* in generation_config.json is not supported") as told:
        stream = Stream(asking, tokenizer, 2, 60)
    assert len(told) == 1
    list(stream.generate(3))


def test_several_are_one_note(loaded):
    asking = replace(loaded[0], generation_config={"num_beams": 4, "typical_p": 0.9, "suppress_tokens": [1] * 1000})
    with pytest.warns(UserWarning, match=r"^num_beams=4, suppress_tokens=\[1, 1.*, typical_p=0.9 in ") as told:
        Stream(asking, loaded[1], 2, 60)
    assert len(told) == 1
    assert len(str(told[0].message)) < 300


def test_values_that_change_nothing_are_not_spoken_of():
    defaults = GenerationConfig._get_default_generation_params()
    assert unsupported_keys(defaults) == {}
    assert unsupported_keys(GenerationConfig().to_dict()) == {}
    assert unsupported_keys({"num_beams": 1, "typical_p": 1.0, "bad_words_ids": [], "guidance_scale": 1.0}) == {}


def test_every_key_of_transformers_is_honoured_or_said_or_about_something_else():
    about_something_else = {
        *("max_length", "max_new_tokens", "max_time", "num_return_sequences", "early_stopping", "length_penalty"),
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "use_mtp"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold", "is_assistant"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
        *("target_lookbehind", "assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile"),
        *("continuous_batching_config", "low_memory", "num_beam_groups", "remove_invalid_values"),
        *("renormalize_logits", "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version"),
        "_from_model_config",
    }
    honoured = {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
    honoured |= {"eos_token_id", "stop_strings"}
    said = {name for name in GenerationConfig().to_dict() if unsupported_keys({name: "some"})}
    assert set(GenerationConfig().to_dict()) <= about_something_else | honoured | said
    assert not said & (about_something_else | honoured)


def test_a_config_without_such_keys_gives_no_note(loaded):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Stream(*loaded, 2, 60)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"top_k": "many"}, "top_k must be 1 or more, or 0 or -1 .off.; got 'many'"),
        ({"top_k": 2.5}, "top_k must be .*; got 2.5"),
        ({"temperature": True}, "temperature must be .*; got True"),
        ({"top_p": [0.9]}, r"top_p must be .*; got \[0.9\]"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"min_p": float("nan")}, "min_p must be .*; got nan"),
        ({"do_sample": "yes"}, "do_sample must be true or false; got 'yes'"),
    ],
)
def test_a_value_that_cannot_be_used_names_the_file_and_the_key(config, message):
    with pytest.raises(SllmError, match=f"the model's generation_config.json cannot be used: {message}"):
        sampling_for(config)


@pytest.mark.parametrize("value", [-1, 0, None])
def test_a_top_k_of_minus_one_is_off(value):
    assert sampling_for({"do_sample": True, "top_k": value}).top_k is None
    assert sampling_for({}, top_k=value, temperature=1.0).top_k is None


def test_an_unknown_sampling_option_lists_the_known_ones(loaded):
    known = "temperature, top_k, top_p, min_p, repetition_penalty"
    with pytest.raises(SllmError, match=f"there is no sampling option beams, typical; expected one of {known}"):
        Stream(*loaded, 2, 60).generate(3, beams=3, typical=0.5)
    with pytest.raises(SllmError, match="there is no sampling option frequency_penalty"):
        Stream(*loaded, 2, 60).chat("Hello", frequency_penalty=1.0)


@pytest.mark.parametrize("wrong", [5, [""], ["a", 3], {"a": 1}])
def test_stop_strings_that_are_no_texts(wrong):
    with pytest.raises(SllmError, match=r"stop_strings in the model.s generation_config"):
        stop_strings({"stop_strings": wrong})


def test_stop_strings_of_both_forms():
    assert stop_strings({"stop_strings": "END"}) == ["END"]
    assert stop_strings({"stop_strings": ["a", "b"]}) == ["a", "b"]
    assert stop_strings({}) == stop_strings({"stop_strings": None}) == []
