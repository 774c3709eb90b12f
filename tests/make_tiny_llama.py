"""Make `tests/data/tiny-llama`: a random Llama with the tiny tokenizer, for tests and for trying the command line.

python tests/make_tiny_llama.py
"""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

DATA = Path(__file__).parent / "data"
SIZES = {
    "vocab_size": 420,
    "hidden_size": 28,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
}


def main() -> None:
    torch.manual_seed(0)
    folder = DATA / "tiny-llama"
    LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16).save_pretrained(folder)
    for path in (DATA / "tiny-tokenizer-spm").glob("tokenizer*.json"):
        shutil.copy(path, folder)


if __name__ == "__main__":
    main()
