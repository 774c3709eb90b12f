"""Checks that a config.json has no unsupported options.

A key passes if the family understands it, if it is known to change nothing, or if its value is off (null, false, 0 or
empty). An unknown option that is off is assumed to be off by default; those known to be on by default are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from sllm_jax.common.errors import SllmError

_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "logit_scale")
# Options that are on by default: off changes the model.
_ON_BY_DEFAULT = ("scale_attn_weights", "use_rope", "normalize_before", "do_layer_norm_before")
# fmt: off
# Options that are known to change the model. Any other unknown option may.
_CHANGES_THE_MODEL = {
    "num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok",
    "attn_logit_softcapping", "final_logit_softcapping", "attention_chunk_size", "sliding_window_pattern",
    "no_rope_layers", "no_rope_layer_interval", "kv_lora_rank", "q_lora_rank", "qk_layernorm", "use_qk_norm",
    "is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention",
    "attention_bias", "mlp_bias", "apply_residual_connection_post_layernorm", *_MULTIPLIERS,
}
_HARMLESS = {
    # Bookkeeping.
    "model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "model_name",
    "tokenizer_class", "tokenizer_name", "task_specific_params", "finetuning_task", "problem_type", "license",
    "id2label", "label2id", "num_labels", "verbose", "transformers.js_config",
    # Special tokens; the tokenizer and generation_config.json say how they are used.
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
    "decoder_start_token_id", "bos_token", "eos_token", "pad_token", "unk_token", "prefix", "model_max_length",
    # Read by other code: quantized weights and the int8 weights of converted checkpoints (sllm_jax.convert).
    "quantization_config", "weights", "is_causal",
    # Training and initialization.
    "initializer_range", "initializer_factor", "init_config", "init_device", "init_std", "gradient_checkpointing",
    "embedding_fraction", "emb_pdrop", "embd_pdrop", "resid_pdrop", "attn_pdrop", "router_aux_loss_coef",
    "z_loss_coefficient", "use_pad_tok_in_ffn", "fp16", "bf16", "fp32", "use_bfloat16",
    # Implementation: the same function, computed in another way.
    "use_cache", "cache_implementation", "attn_implementation", "attn_impl", "use_flash_attn",
    "use_flash_attention_2", "pretraining_tp", "chunk_size_feed_forward", "torchscript", "fc_type", "fused_qkv",
    "max_window_layers",  # counts with use_sliding_window only
    # What transformers returns, and its generation defaults of before generation_config.json.
    "return_dict", "output_hidden_states", "output_attentions", "output_scores", "return_dict_in_generate",
    "is_decoder", "cross_attention_hidden_size", "tie_encoder_decoder", "tf_legacy_loss", "output_router_logits",
    "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens",
}
# fmt: on
_HARMLESS_PATTERN = re.compile(r"_.*|unsloth_.*|.*dropout.*")
_HEADS = re.compile(r".*(For(Sequence|Token)Classification|ForQuestionAnswering|ForMaskedLM|RewardModel)")
# LlamaModel, FalconModel; but not LlamaForCausalLM, GPT2LMHeadModel, LlamaRewardModel.
_BARE = re.compile(r"(?!.*(LMHead|RewardModel)).*Model")
_SHOWN = 10  # options in one message


def refuse_unsupported(config: Mapping[str, Any], understood: Collection[str] = ()) -> None:
    """Raises `SllmError` for a model that writes no text, and for options that may change what a model computes.

    `understood` are the options that the family reads: it checks these itself.
    """
    if config.get("is_causal") is False:
        raise SllmError("config.json says is_causal = False: an embedder, which reads both ways and writes no text")
    for name in architectures(config):
        if _HEADS.fullmatch(name):
            raise SllmError(
                f"config.json is of a {name:.80}: a classifier or reward model, which writes no text; "
                "give the language model that it was made from"
            )
    refuse_unknown(config, understood, f"{config.get('model_type')!r:.80}")


def refuse_unknown(config: Mapping[str, Any], understood: Collection[str], where: str) -> None:
    """Raises `SllmError` for options that are neither `understood` nor harmless nor off. `where` is for the message."""
    unknown = [name for name in config if name not in understood and not _is_harmless(name, config[name])]
    if known := [name for name in unknown if name in (*_CHANGES_THE_MODEL, *_ON_BY_DEFAULT)]:
        raise SllmError(f"config.json asks for what is not supported in {where}: {_shown(config, known)}")
    if unknown:
        raise SllmError(
            f"config.json has unknown options in {where}: {_shown(config, unknown)}; "
            "remove them from config.json if they do not change what the model computes"
        )


def _is_harmless(name: str, value: Any) -> bool:
    """Whether an option that the family does not understand changes nothing."""
    if name in _ON_BY_DEFAULT:
        return value is None or bool(value)
    is_off = value in _OFF or (name in _MULTIPLIERS and value == 1)
    is_full = name == "layer_types" and isinstance(value, list) and all(kind == "full_attention" for kind in value)
    return is_off or is_full or name in _HARMLESS or _HARMLESS_PATTERN.fullmatch(name) is not None


def _shown(config: Mapping[str, Any], names: list[str]) -> str:
    """The options and their values for a message, cut short."""
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*(f"{name:.80} = {config[name]!r:.80}" for name in names[:_SHOWN]), *more])


def bare_architecture(config: Mapping[str, Any]) -> str | None:
    """The class of a model that was saved without its head, such as `LlamaModel`; None for any other."""
    names = architectures(config)
    return names[0] if names and all(_BARE.fullmatch(name) for name in names) else None


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The names of classes in `architectures`."""
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
