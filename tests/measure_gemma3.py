"""Measure what sinks do in the layers of Gemma 3 270M that have a sliding window (not a test).

    python tests/measure_gemma3.py TEXT [--max-tokens 40001] [--start-size 4] [--recent-size 1020]

Prints the perplexity with sinks in these layers, without, and of a window without any sinks.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from fetch_gemma3 import GEMMA3

import sllm_jax
from sllm_jax.core.model import Model
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.text.tokenizer import encode


def perplexity(model, ids, mode, asked):
    return float(np.exp(np.concatenate(list(token_nll(model, ids, mode, asked.start_size, asked.recent_size))).mean()))


def main():
    options = argparse.ArgumentParser()
    options.add_argument("text", type=Path)
    options.add_argument("--max-tokens", type=int, default=40001)
    options.add_argument("--start-size", type=int, default=4)
    options.add_argument("--recent-size", type=int, default=1020)
    asked = options.parse_args()
    model, tokenizer = sllm_jax.load(GEMMA3.fetch(), "float32")
    ids = encode(tokenizer, asked.text.read_text(encoding="utf-8"), start=True)[: asked.max_tokens]
    for has_sinks in (False, True):
        module = model.module.clone(config=replace(model.config, sinks_in_windows=has_sinks))
        found = perplexity(Model(module, model.params), ids, "streaming", asked)
        print(f"{'sinks' if has_sinks else 'no sinks'} in layers with a window: {found:.4g}", flush=True)
    print(f"no sinks in any layer: {perplexity(model, ids, 'window', asked):.4g}")


if __name__ == "__main__":
    main()
