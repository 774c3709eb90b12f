"""How long a first text takes from nothing, in a process of its own: figures for people, not a test.

    python tests/measure_start.py [--model bundled:llama] [--max-tokens 5000] [--runs 3]

The end-of-text token does not end it, so that every run writes as many tokens. Each line is the median of the runs.
"""

import argparse
import re
import subprocess
import sys
import time
from statistics import median

SPEED = re.compile(rb"^(\d+) tokens, ([\d.]+) tokens/s", re.MULTILINE)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--model", default="bundled:llama")
    options.add_argument("--max-tokens", default="5000")
    options.add_argument("--runs", type=int, default=3)
    asked = options.parse_args()
    arguments = ["generate", "--model", asked.model, "--max-tokens", asked.max_tokens, "--ignore-eos"]
    first, total, speed = zip(*(measure(arguments) for _ in range(asked.runs)), strict=True)
    print(f"{median(first):.2f} s from the start of the process to the first character")
    print(f"{median(total):.2f} s to the end, {asked.max_tokens} tokens")
    print(f"{median(speed):.1f} tokens/s as the command reports")


def measure(arguments: list[str]) -> tuple[float, float, float]:
    """Seconds to the first character of text and to the end of the process, and tokens/s."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "sllm_jax", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(1)
        first = time.perf_counter() - begin
        _, notes = process.communicate()
    total = time.perf_counter() - begin
    if process.returncode:
        sys.exit(notes.decode())
    return first, total, float(SPEED.search(notes)[2])


if __name__ == "__main__":
    main()
