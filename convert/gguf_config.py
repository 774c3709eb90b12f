"""The metadata of a GGUF file as Hugging Face's config.json and generation_config.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.gguf_file import Header, read_headers
from sllm_jax.convert.gguf_rope import FREQUENCIES, longrope, rope_scaling

_INTEGER, _NUMBER = np.integer, (np.integer, np.floating)

# Metadata of an architecture, without its name, that change nothing here, and that must have one of these values.
_HARMLESS = frozenset({"vocab_size", "rope.scaling.finetuned", "expert_used_count"})
_ONLY = {"expert_count": (0,), "attention.causal": (True,), "tensor_data_layout": ("Meta AI original pth", "jploski")}
# Of general.sampling.: those of Hugging Face, and those that change the text and have no counterpart there.
_SAMPLING = {"temp": "temperature"} | {
    name: name for name in ("top_k", "top_p", "min_p", "penalty_repeat", "xtc_probability", "mirostat")
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of tokenizer.ggml.: text, turn, message


def architecture(header: Header) -> str:
    """The architecture of the model; raises `SllmError` that lists what is supported."""
    name = header.get("general.architecture", str)
    if name not in _ARCHITECTURES:
        what = "no architecture" if name is None else f"the architecture {name!r:.80}"
        raise SllmError(f"{header.path} has {what}; supported in GGUF are {', '.join(_ARCHITECTURES)}")
    return name


def config(path: Path) -> dict[str, Any]:
    """The model's config under the names of Hugging Face.

    Raises `SllmError` for an architecture that is not supported, and for metadata that is missing or unknown: it may
    change what the model computes.
    """
    headers = read_headers(path)
    about = _About(headers)
    found = _ARCHITECTURES[about.name](about)
    about.refuse_unread()
    return {
        **found,
        "vocab_size": about.rows("token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in about.tensors,
        "bos_token_id": _token(about.header, "bos_token_id"),
        "eos_token_id": _token(about.header, "eos_token_id"),
    }


def generation_config(path: Path) -> dict[str, Any]:
    """The end-of-text tokens and the sampling defaults, under the names of generation_config.json."""
    header = read_headers(path)[0]
    ends = sorted({end for name in _ENDS if (end := _token(header, name)) is not None})
    sampling = {
        ours: _plain(value)
        for theirs, ours in _SAMPLING.items()
        if (value := header.get(f"general.sampling.{theirs}", _NUMBER)) is not None
    }
    return ({"eos_token_id": ends} if ends else {}) | ({"do_sample": True} if sampling else {}) | sampling


class _About:
    """The metadata of one architecture, and the tensors of all files. Remembers which keys were read."""

    def __init__(self, headers: list[Header]) -> None:
        self.header, self.name = headers[0], architecture(headers[0])
        self.tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
        self.read: set[str] = set()

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of a key without the architecture's name, as `Header.get`."""
        self.read.add(key)
        return self.header.get(f"{self.name}.{key}", kind, default)

    def refuse_unread(self) -> None:
        """Raises `SllmError` for metadata that the architecture did not read, unless it is known to be harmless."""
        prefix = f"{self.name}."
        keys = [key.removeprefix(prefix) for key in self.header.metadata if key.startswith(prefix)]
        if unknown := [key for key in keys if key not in self.read | _HARMLESS | _ONLY.keys()]:
            listed = ", ".join(f"{prefix}{key:.80}" for key in unknown[:10])
            raise SllmError(f"{self.header.path} has metadata that is not supported: {listed}")
        for key, allowed in _ONLY.items():
            value = self.header.metadata.get(prefix + key)
            if value is not None and (isinstance(value, list | np.ndarray) or value not in allowed):
                raise SllmError(f"{self.header.path}: {prefix}{key} {value!r:.80} is not supported")

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; a list of them if all layers have the same. Raises `SllmError` if it is missing."""
        value: Any = self.get(key, (_INTEGER, np.ndarray), default)
        values = set(np.ravel(value).tolist()) if isinstance(value, np.ndarray | np.generic) else {value}
        if len(values) > 1:
            raise SllmError(f"{self.header.path}: {self.name}.{key} differs between layers, which is not supported")
        value = next(iter(values), None)
        if not isinstance(value, int) or value <= 0:
            raise SllmError(f"{self.header.path}: {self.name}.{key} must be a positive integer; got {value!r:.80}")
        return value

    def number(self, key: str, default: float | None = None) -> Any:
        """A finite number, or `default`."""
        value = self.get(key, _NUMBER)
        if value is not None and not math.isfinite(value):
            raise SllmError(f"{self.header.path}: {self.name}.{key} must be finite; got {value!r:.80}")
        return default if value is None else _plain(value)

    def rows(self, tensor: str) -> int:
        """The number of rows of a tensor; raises `SllmError` if it is absent."""
        if tensor not in self.tensors:
            raise SllmError(f"{self.header.path} has no tensor {tensor}; give the file of a whole model")
        return self.tensors[tensor].shape[0]

    def head_dim(self) -> int:
        """The size of a head; raises `SllmError` if heads do not fit."""
        width, heads = self.size("embedding_length"), self.size("attention.head_count")
        found = self.size("attention.key_length", width // heads if width >= heads else None)
        if self.size("attention.value_length", found) != found:
            raise SllmError(f"{self.header.path}: keys and values of different size are not supported")
        return found

    def shared(self, *names: str) -> dict[str, Any]:
        """The sizes that all architectures have, under these names: width, layers, heads, context."""
        keys = ("embedding_length", "block_count", "attention.head_count", "context_length")
        found = {name: self.size(key) for name, key in zip(names, keys, strict=True)}
        if found[names[1]] > len(self.tensors):
            raise SllmError(f"{self.header.path} promises {found[names[1]]} layers in {len(self.tensors)} tensors")
        return found

    def kv_heads(self) -> int:
        """The number of key/value heads."""
        return self.size("attention.head_count_kv", self.size("attention.head_count"))

    def rotary(self) -> dict[str, Any]:
        """The options of RoPE."""
        kind = self.get("rope.scaling.type", str)
        scaling = rope_scaling(self.header.path, self.tensors.get(FREQUENCIES), kind, self.number)
        return {"rope_theta": self.number("rope.freq_base", 10_000.0)} | ({"rope_scaling": scaling} if scaling else {})


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def _llama(about: _About) -> dict[str, Any]:
    head_dim = about.head_dim()
    dim = about.size("rope.dimension_count", head_dim)
    model_type = about.name
    kinds = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3"}
    bias = {} if model_type == "qwen2" else {"attention_bias": "blk.0.attn_q.bias" in about.tensors}
    return {
        "architectures": [f"{kinds[model_type]}ForCausalLM"],
        "model_type": model_type,
        **about.shared(*_SIZES),
        "intermediate_size": about.size("feed_forward_length"),
        "num_key_value_heads": about.kv_heads(),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": about.number("attention.layer_norm_rms_epsilon", 1e-5),
        **bias,
        **({"mlp_bias": True} if "blk.0.ffn_gate.bias" in about.tensors else {}),
        **about.rotary(),
        **({"partial_rotary_factor": _share(dim, head_dim)} if dim != head_dim else {}),
    }


def _gemma(about: _About) -> dict[str, Any]:
    head_dim, is_3 = about.head_dim(), about.name == "gemma3"
    if about.size("rope.dimension_count", head_dim) != head_dim:
        raise SllmError(f"{about.header.path}: Gemma with RoPE of a part of each head is not supported")
    layers = about.size("block_count")
    # llama.cpp scales by the head size, in the models of 27 billion parameters by the hidden size over the heads.
    is_27b = layers == (62 if is_3 else 46)
    width, heads = about.size("embedding_length"), about.size("attention.head_count")
    scale = width // heads if is_27b else head_dim
    if is_3:
        own = {"rope_local_base_freq": about.number("rope.freq_base_swa", 10_000.0)}
    else:
        own = {"attn_logit_softcapping": about.number("attn_logit_softcapping", 50.0)}
    return {
        "architectures": ["Gemma3ForCausalLM" if is_3 else "Gemma2ForCausalLM"],
        "model_type": "gemma3_text" if is_3 else "gemma2",
        **about.shared(*_SIZES),
        "intermediate_size": about.size("feed_forward_length"),
        "num_key_value_heads": about.kv_heads(),
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": about.number("attention.layer_norm_rms_epsilon", 1e-6),
        "query_pre_attn_scalar": scale,
        **_gemma_windows(about, layers, is_3),
        "final_logit_softcapping": about.number("final_logit_softcapping", None if is_3 else 30.0),
        **about.rotary(),
        **own,
    }


def _gemma_windows(about: _About, layers: int, is_3: bool) -> dict[str, Any]:
    """The window and the layers that have it; as in llama.cpp, a Gemma 3 without a size has none."""
    window = about.number("attention.sliding_window", 0 if is_3 else 4096)
    key = "attention.sliding_window_pattern"
    pattern = about.get(key, (_INTEGER, np.ndarray))
    if not isinstance(pattern, np.ndarray):  # every how many layers one is without the window, or a list of all layers
        every = about.size(key, 6 if is_3 else 2)
        pattern = [(i + 1) % every != 0 for i in range(layers)]
    if len(pattern) != layers:
        raise SllmError(f"{about.header.path}: {about.name}.{key} must have {layers} entries; got {len(pattern)}")
    return {
        "sliding_window": window or None,
        "layer_types": ["sliding_attention" if window and slides else "full_attention" for slides in pattern],
    }


def _phi3(about: _About) -> dict[str, Any]:
    head_dim, rotary = about.head_dim(), about.rotary()
    dim = about.size("rope.dimension_count", head_dim)
    if scaling := longrope(about.header.path, about.tensors, dim // 2, about.number):
        if "rope_scaling" in rotary:
            kind = rotary["rope_scaling"]["rope_type"]
            raise SllmError(
                f"{about.header.path} has RoPE type {kind!r} beside the factors of longrope; fetch it again"
            )
        rotary["rope_scaling"] = scaling
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **about.shared(*_SIZES),
        "intermediate_size": about.size("feed_forward_length"),
        "num_key_value_heads": about.kv_heads(),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": about.number("attention.layer_norm_rms_epsilon", 1e-5),
        "sliding_window": about.number("attention.sliding_window", 0) or None,  # 0: none
        "original_max_position_embeddings": about.size(
            "rope.scaling.original_context_length", about.size("context_length")
        ),
        "partial_rotary_factor": _share(dim, head_dim),
        **rotary,
    }


def _gpt_neox(about: _About) -> dict[str, Any]:
    head_dim, rotary = about.head_dim(), about.rotary()
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        **about.shared(*_SIZES),
        "intermediate_size": about.size("feed_forward_length"),
        "hidden_act": "gelu",
        "layer_norm_eps": about.number("attention.layer_norm_epsilon", 1e-5),
        "use_parallel_residual": bool(about.get("use_parallel_residual", np.bool_, True)),
        "attention_bias": "blk.0.attn_qkv.bias" in about.tensors,
        "rotary_pct": _share(about.size("rope.dimension_count", head_dim), head_dim),
        "rotary_emb_base": rotary.pop("rope_theta"),
        **rotary,
    }


def _falcon(about: _About) -> dict[str, Any]:
    head_dim = about.head_dim()
    if about.size("rope.dimension_count", head_dim) != head_dim:
        raise SllmError(f"{about.header.path}: Falcon with RoPE of a part of each head is not supported")
    if about.get("tensor_data_layout", str) != "jploski":
        raise SllmError(f"{about.header.path}: Falcon's tensor_data_layout must be 'jploski'; convert it again")
    kv_heads, two_norms = about.kv_heads(), "blk.0.attn_norm_2.weight" in about.tensors
    new = kv_heads > 1 or two_norms
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        **about.shared(*_SIZES),
        "ffn_hidden_size": about.size("feed_forward_length"),
        "num_kv_heads": kv_heads,
        "multi_query": True,
        "new_decoder_architecture": new,
        **({"num_ln_in_parallel_attn": 2 if two_norms else 1} if new else {}),
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "layer_norm_epsilon": about.number("attention.layer_norm_epsilon", 1e-5),
        **about.rotary(),
    }


def _mpt(about: _About) -> dict[str, Any]:
    if about.kv_heads() != about.size("attention.head_count") or "position_embd.weight" in about.tensors:
        raise SllmError(f"{about.header.path}: MPT with grouped queries or learned positions is not supported")
    width, inner = about.size("embedding_length"), about.size("feed_forward_length")
    if inner % width:
        raise SllmError(f"{about.header.path}: mpt.feed_forward_length {inner} is not a multiple of {width}")
    bias_max, clip = about.number("attention.max_alibi_bias", 0.0), about.number("attention.clamp_kqv", 0.0)
    if bias_max <= 0:
        raise SllmError(f"{about.header.path}: MPT without ALiBi is not supported")
    return {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        **about.shared("d_model", "n_layers", "n_heads", "max_seq_len"),
        "expansion_ratio": inner // width,
        "layer_norm_epsilon": about.number("attention.layer_norm_epsilon", 1e-5),
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": bias_max,
            "clip_qkv": clip or None,
            "qk_ln": "blk.0.attn_q_norm.weight" in about.tensors,
        },
    }


_ARCHITECTURES: Mapping[str, Callable[[_About], dict[str, Any]]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "smollm3"), _llama),
    **dict.fromkeys(("gemma2", "gemma3"), _gemma),
    "phi3": _phi3,
    "gptneox": _gpt_neox,
    "falcon": _falcon,
    "mpt": _mpt,
}


def _share(dim: int, head_dim: int) -> float:
    """The share of a head that rotates; `int(head_dim * share)` is `dim` again."""
    share = dim / head_dim
    return share if int(head_dim * share) == dim else math.nextafter(share, math.inf)


def _token(header: Header, name: str) -> int | None:
    value = header.get(f"tokenizer.ggml.{name}", _INTEGER)
    return None if value is None or value >= 2**31 else int(value)  # 2**32 - 1 stands for none


def _plain(value: Any) -> Any:
    """A Python number with the shortest decimals that give the same value."""
    return int(value) if isinstance(value, np.integer) else float(str(value))
