"""`generation_config.json`: the keys that are not supported, and stop strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sllm_jax.common.errors import SllmError

FILE = "the model's generation_config.json"

# Unsupported keys that change the text, each with its neutral values.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "constraints": (None, []),
    "diversity_penalty": (None, 0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "frequency_penalty": (None, 0),
    "guidance_scale": (None, 1),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "mirostat": (None, 0),  # of a GGUF file, as `penalty_repeat` and `xtc_probability`
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "penalty_repeat": (None, 1),
    "presence_penalty": (None, 0),
    "sequence_bias": (None, {}, []),
    "suppress_tokens": (None, []),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1),
    "watermarking_config": (None,),
    "xtc_probability": (None, 0),
}


def unsupported_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The unsupported keys that would change the text, with their values."""
    return {name: config[name] for name, neutral in _UNSUPPORTED.items() if config.get(name) not in neutral}


def stop_strings(config: Mapping[str, Any]) -> list[str]:
    """The `stop_strings`, texts that end generation; raises `SllmError` if they are not strings."""
    found = config.get("stop_strings")
    texts = [found] if isinstance(found, str) else [] if found is None else found
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise SllmError(f"stop_strings in {FILE} must be a text or a list of texts; got {found!r}")
    return texts
