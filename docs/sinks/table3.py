"""The paper's Table 3 in small: one config trained with each kind of sink, streamed with 0, 1, 2 and 4 sinks kept.

    python docs/sinks/table3.py RUNS TEXT [TEXT ...]

trains in the folders RUNS/none, RUNS/zero and RUNS/learnable (goes on where it was stopped), then writes table3.csv and
table3.md beside this file.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

import sllm_jax
from sllm_jax.perplexity import perplexity, token_nll
from sllm_jax.tokenizer import encode

HERE = Path(__file__).parent
OPTIONS = "--steps 3000 --batch-size 16 --learning-rate 4e-3 --warmup-steps 200 --hold-back 6 --dtype bfloat16".split()
KINDS = {"none": "Vanilla", "zero": "Zero sink", "learnable": "Learnable sink"}
STARTS = (0, 1, 2, 4)
TOKENS = 100_000


def train(kind: str, out: Path, texts: list[str]) -> None:
    """Train the model of one kind, unless it is there."""
    command = [*"sllm-jax train".split(), *texts, "--config", str(HERE / "config.json"), "--out", str(out), *OPTIONS]
    if not (out / "model").exists():
        subprocess.run([*command, "--sink", kind, *(["--resume"] if out.exists() else [])], check=True)


def measure(run: Path) -> list[float]:
    """Perplexity of the held-back text for each number of sinks, at one cache size: the trained context."""
    model, tokenizer = sllm_jax.load(run / "model")
    context = model.config.max_position_embeddings
    ids = encode(tokenizer, (run / "held_back.txt").read_text(encoding="utf-8"), start=True)[: TOKENS + 1]
    return [perplexity(np.concatenate(list(token_nll(model, ids, "streaming", s, context - 1 - s)))) for s in STARTS]


def main(runs: Path, texts: list[str]) -> None:
    """All of it."""
    lines = ["kind,start_size,recent_size,perplexity"]
    rows = []
    for kind, name in KINDS.items():
        train(kind, runs / kind, texts)
        found = measure(runs / kind)
        lines += [f"{kind},{s},{127 - s},{value:.3f}" for s, value in zip(STARTS, found, strict=True)]
        rows.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in found) + " |")
    header = "| cache | " + " | ".join(f"{s}+{127 - s}" for s in STARTS) + " |"
    (HERE / "table3.csv").write_text("\n".join(lines) + "\n")
    table = "\n".join([header, "|---" * (len(STARTS) + 1) + "|", *rows])
    (HERE / "table3.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
