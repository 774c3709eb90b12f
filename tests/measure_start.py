"""Measure the start-up time of text generation in a new process, by stage (not a test).

    python tests/measure_start.py [--model bundled:llama] [--max-tokens 5000] [--runs 3]

End-of-text tokens are ignored, so that all runs generate the same number of tokens. Each line is a median of the runs.
`cold`: without cached compiled programs; `warm`: with those of the previous run.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from itertools import pairwise
from statistics import median

SPEED = re.compile(rb"^(\d+) tokens, ([\d.]+) tokens/s", re.MULTILINE)
MODELS = {"HF_HOME": os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface"))}
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")} | MODELS


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--model", default="bundled:llama")
    options.add_argument("--max-tokens", default="5000")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--stages", action="store_true", help=argparse.SUPPRESS)  # how it calls itself
    asked = options.parse_args()
    if asked.stages:
        return stages(asked.model)
    command = ["-m", "sllm_jax", "generate", "--model", asked.model, "--max-tokens", asked.max_tokens, "--ignore-eos"]
    for name, run in (("cold", cold), ("warm", warm)):
        first, total, speed = zip(*(run(lambda cache: measure(command, cache), asked.runs)), strict=True)
        print(f"{name}: {median(first):.2f} s from the start of the process to the first character")
        print(f"{name}: {median(total):.2f} s to the end, {asked.max_tokens} tokens")
        print(f"{name}: {median(speed):.1f} tokens/s as the command reports")
    staged = [__file__, "--stages", "--model", asked.model]
    for name, run in (("cold", cold), ("warm", warm)):
        print(f"{name}: {run(lambda cache: child(staged, cache), 1)[0].stdout.decode().strip()}")


def cold(measured, runs: int) -> list:
    """Each run with a cache folder of its own."""
    found = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as cache:
            found.append(measured(cache))
    return found


def warm(measured, runs: int) -> list:
    """All runs with one cache folder, which one before them has filled."""
    with tempfile.TemporaryDirectory() as cache:
        return [measured(cache) for _ in range(runs + 1)][1:]


def environment(cache: str) -> dict[str, str]:
    """Compiled programs are kept in this folder, and nothing else that is cached moves."""
    return PLAIN | {"XDG_CACHE_HOME": cache}


def child(arguments: list[str], cache: str) -> subprocess.CompletedProcess:
    """A process of its own, to its end."""
    return subprocess.run([sys.executable, *arguments], env=environment(cache), capture_output=True, check=True)


def measure(arguments: list[str], cache: str) -> tuple[float, float, float]:
    """Seconds to the first character of text and to the end of the process, and tokens/s."""
    begin, pipe = time.perf_counter(), subprocess.PIPE
    with subprocess.Popen([sys.executable, *arguments], stdout=pipe, stderr=pipe, env=environment(cache)) as process:
        process.stdout.read(1)
        first = time.perf_counter() - begin
        _, notes = process.communicate()
    total = time.perf_counter() - begin
    if process.returncode:
        sys.exit(notes.decode())
    return first, total, float(SPEED.search(notes)[2])


def stages(name: str) -> None:
    """The way to the first piece of text in this process, a stage after the other."""
    marks = [("", time.perf_counter())]

    def mark(stage: str) -> None:
        marks.append((stage, time.perf_counter()))

    import_module("sllm_jax.cli")
    from sllm_jax.cli.program_cache import keep_programs

    keep_programs()
    mark("command line")
    import jax

    jax.devices()
    mark("JAX")
    import_module("flax.linen")

    mark("Flax")
    import_module("transformers")

    mark("transformers")
    import numpy as np

    from sllm_jax.core.decode import CHUNK_SIZES, NO_TOKEN, decode_program, extend_program
    from sllm_jax.core.sampling import sampling_for
    from sllm_jax.loading.pretrained import load
    from sllm_jax.streams.stream import Stream

    mark("the rest of the imports")
    model, tokenizer = load(name)
    mark("weights and tokenizer")
    stream = Stream(model, tokenizer)
    carry = stream._carry
    mark("state")
    extend_program.lower(model, carry, np.zeros(CHUNK_SIZES[0], np.int32), np.int32(1)).compile()
    mark("the program that reads")
    eos = np.array([NO_TOKEN], np.int32)
    options = sampling_for(model.generation_config)
    decode_program.lower(model, carry, options, eos, np.int32(8), steps=8).compile()
    mark("the program that writes")
    next(stream.generate(ignore_eos=True))
    mark("reading and writing")
    print(", ".join(f"{stage} {after - before:.2f}" for (_, before), (stage, after) in pairwise(marks)), "s")


if __name__ == "__main__":
    main()
