"""GGUF files of tiny Hugging Face models, laid out and named as llama.cpp's convert_hf_to_gguf.py does it."""

import math

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

ARCHITECTURES = {"gpt_neox": "gptneox", "mistral": "llama", "gemma3_text": "gemma3"}  # where it is not the model_type
LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "model.layers.{i}.self_attn.q_proj": "blk.{i}.attn_q",
    "model.layers.{i}.self_attn.k_proj": "blk.{i}.attn_k",
    "model.layers.{i}.self_attn.v_proj": "blk.{i}.attn_v",
    "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
    "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
    "model.layers.{i}.self_attn.o_proj": "blk.{i}.attn_output",
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
    "model.layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
    "model.layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
}
GEMMA = LLAMA | {
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "model.layers.{i}.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}
PHI3 = LLAMA | {
    "model.layers.{i}.self_attn.qkv_proj": "blk.{i}.attn_qkv",
    "model.layers.{i}.mlp.gate_up_proj": "blk.{i}.ffn_up",
}
GPT_NEOX = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "lm_head": "output",  # in transformers 5
    "gpt_neox.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "gpt_neox.layers.{i}.attention.query_key_value": "blk.{i}.attn_qkv",
    "gpt_neox.layers.{i}.attention.dense": "blk.{i}.attn_output",
    "gpt_neox.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
    "gpt_neox.layers.{i}.mlp.dense_h_to_4h": "blk.{i}.ffn_up",
    "gpt_neox.layers.{i}.mlp.dense_4h_to_h": "blk.{i}.ffn_down",
}
FALCON = {
    "transformer.word_embeddings": "token_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "transformer.h.{i}.input_layernorm": "blk.{i}.attn_norm",
    "transformer.h.{i}.ln_mlp": "blk.{i}.attn_norm",
    "transformer.h.{i}.ln_attn": "blk.{i}.attn_norm_2",
    "transformer.h.{i}.self_attention.query_key_value": "blk.{i}.attn_qkv",
    "transformer.h.{i}.self_attention.dense": "blk.{i}.attn_output",
    "transformer.h.{i}.mlp.dense_h_to_4h": "blk.{i}.ffn_up",
    "transformer.h.{i}.mlp.dense_4h_to_h": "blk.{i}.ffn_down",
}
MPT = {
    "transformer.wte": "token_embd",
    "transformer.norm_f": "output_norm",
    "lm_head": "output",
    "transformer.blocks.{i}.norm_1": "blk.{i}.attn_norm",
    "transformer.blocks.{i}.attn.Wqkv": "blk.{i}.attn_qkv",
    "transformer.blocks.{i}.attn.out_proj": "blk.{i}.attn_output",
    "transformer.blocks.{i}.norm_2": "blk.{i}.ffn_norm",
    "transformer.blocks.{i}.ffn.up_proj": "blk.{i}.ffn_up",
    "transformer.blocks.{i}.ffn.down_proj": "blk.{i}.ffn_down",
}
NAMES = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "smollm3"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3"), GEMMA),
    **{"phi3": PHI3, "gptneox": GPT_NEOX, "falcon": FALCON, "mpt": MPT},
}


def architecture(config):
    return ARCHITECTURES.get(config.model_type, config.model_type)


def metadata(config):
    """What convert_hf_to_gguf.py writes, without the architecture's name; Python ints are uint32."""
    arch = architecture(config)
    if arch == "mpt":
        return {
            "context_length": config.max_seq_len,
            "embedding_length": config.d_model,
            "block_count": config.n_layers,
            "feed_forward_length": config.expansion_ratio * config.d_model,
            "attention.head_count": config.n_heads,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
            "attention.max_alibi_bias": float(config.attn_config.alibi_bias_max),
            **({"attention.clamp_kqv": config.attn_config.clip_qkv} if config.attn_config.clip_qkv else {}),
        }
    sizes = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
    }
    rope = config.rope_parameters
    if arch == "falcon":
        return sizes | {
            "tensor_data_layout": "jploski",
            "feed_forward_length": config.ffn_hidden_size,
            "attention.head_count_kv": config.num_kv_heads if config.new_decoder_architecture else 1,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
    if arch in ("gemma2", "gemma3"):
        sizes |= {"attention.sliding_window": config.sliding_window}
        caps = {name: getattr(config, name) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
        sizes |= {name: float(cap) for name, cap in caps.items() if cap}
    if arch == "gemma3":
        rope, local = rope["full_attention"], rope["sliding_attention"]
        sizes |= {"rope.freq_base_swa": float(local["rope_theta"])}
        if "full_attention" in config.layer_types:
            sizes |= {"attention.sliding_window_pattern": config.layer_types.index("full_attention") + 1}
    sizes |= {"feed_forward_length": config.intermediate_size, "rope.freq_base": float(rope["rope_theta"])}
    if arch == "gptneox":
        head_dim = config.hidden_size // config.num_attention_heads
        return sizes | {
            "rope.dimension_count": int(head_dim * rope["partial_rotary_factor"]),
            "use_parallel_residual": config.use_parallel_residual,
            "attention.layer_norm_epsilon": config.layer_norm_eps,
        }
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if arch == "phi3":
        return sizes | {
            "rope.scaling.original_context_length": config.original_max_position_embeddings,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "rope.dimension_count": int(head_dim * rope["partial_rotary_factor"]),
            "attention.sliding_window": config.sliding_window or 0,
            **({"rope.scaling.attn_factor": longrope_factor(config)} if rope["rope_type"] == "longrope" else {}),
        }
    sizes |= {
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "vocab_size": config.vocab_size,
    }
    if rope["rope_type"] == "linear":
        sizes |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        sizes |= {"rope.scaling.type": "yarn", "rope.scaling.factor": rope["factor"]}
        sizes |= {"rope.scaling.original_context_length": rope["original_max_position_embeddings"]}
    return sizes


def longrope_factor(config):
    """What a Phi-3 multiplies queries and keys with."""
    original = config.original_max_position_embeddings
    return math.sqrt(1 + math.log(config.max_position_embeddings / original) / math.log(original))


def interleaved(weight, heads):
    """Half-split pairs side by side, as in Meta's checkpoints."""
    rest = weight.shape[1:]
    return weight.reshape(heads, 2, -1, *rest).swapaxes(1, 2).reshape(weight.shape)


def apart(weight, kv_heads, head_dim):
    """All queries, all keys, all values of a weight that is fused by key/value head."""
    rest = weight.shape[1:]
    grouped = weight.reshape(kv_heads, -1, head_dim, *rest)
    parts = grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:]
    return np.concatenate([part.reshape(-1, *rest) for part in parts])


def laid_out(name, array, config):
    """A tensor as the file has it."""
    arch = architecture(config)
    if arch in ("llama", "smollm3") and ".attn_q." in name:
        return interleaved(array, config.num_attention_heads)
    if arch in ("llama", "smollm3") and ".attn_k." in name:
        return interleaved(array, config.num_key_value_heads)
    if arch in ("gemma2", "gemma3") and "norm" in name:
        return array + 1
    if arch in ("gptneox", "falcon") and ".attn_qkv." in name:
        own = arch == "gptneox"
        kv_heads = config.num_attention_heads if own else config.num_kv_heads if config.new_decoder_architecture else 1
        return apart(array, kv_heads, config.hidden_size // config.num_attention_heads)
    return array


def llama3_factors(rope, head_dim):
    """The tensor rope_freqs.weight of a Llama 3.1."""
    found = []
    for pair in range(head_dim // 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (2 * pair / head_dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        if turns > high:
            found.append(1)
        elif turns < low:
            found.append(rope["factor"])
        else:
            smooth = (turns - low) / (high - low)
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(found, np.float32)


def tensors_of(model):
    """The tensors of a model by their names in the file."""
    config, names = model.config, NAMES[architecture(model.config)]
    tied = config.tie_word_embeddings
    layers = getattr(config, "num_hidden_layers", None) or config.n_layers
    spread = {ours.format(i=i): theirs.format(i=i) for ours, theirs in names.items() for i in range(layers)}
    found = {}
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if not (tied and stem in ("lm_head", "embed_out")):
            target = f"{spread[stem]}.{kind}"
            found[target] = laid_out(target, tensor.float().numpy(), config)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        found["rope_freqs.weight"] = llama3_factors(config.rope_parameters, head_dim)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        for kind in ("long", "short"):
            found[f"rope_factors_{kind}.weight"] = np.array(config.rope_parameters[f"{kind}_factor"], np.float32)
    return found


def write(path, arch, values, tensors, types=None, tokenizer=None):
    """A GGUF file of `tensors`, each of the type in `types` (F32 where absent)."""
    writer = GGUFWriter(path, arch)
    for key, value in {f"{arch}.{key}": value for key, value in values.items()}.items():
        add_value(writer, key, value)
    for key, value in (tokenizer or {}).items():
        add_value(writer, key, value)
    for name, array in tensors.items():
        kind = (types or {}).get(name, GGMLQuantizationType.F32)
        writer.add_tensor(name, quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write_model(path, model, types=None, tokenizer=None):
    """A GGUF file of a model of transformers."""
    return write(path, architecture(model.config), metadata(model.config), tensors_of(model), types, tokenizer)
