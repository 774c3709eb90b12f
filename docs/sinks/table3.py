"""The paper's Table 3 on a small scale: a config trained with each kind of sink, streamed with 0, 1, 2 and 4 sinks.

    python docs/sinks/table3.py RUNS TEXT [TEXT ...]

trains in the folders RUNS/none, RUNS/zero, RUNS/learnable and, with a high learning rate, RUNS/learnable-fast, resuming
interrupted runs. Then it writes table3.csv and table3.md beside this file.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

import sllm_jax
from sllm_jax.evaluate.perplexity import perplexity, token_nll
from sllm_jax.reproduce.report import Table
from sllm_jax.text.tokenizer import encode

HERE = Path(__file__).parent
OPTIONS = {"steps": 1500, "batch-size": 16, "learning-rate": 4e-3, "warmup-steps": 100, "hold-back": 3}
KINDS: dict[str, tuple[str, dict[str, str | float]]] = {  # folder: name in the table, further options
    "none": ("Vanilla", {"sink": "none"}),
    "zero": ("Zero sink", {"sink": "zero"}),
    "learnable": ("Learnable sink", {"sink": "learnable"}),
    "learnable-fast": ("Learnable sink, learning rate 1.5e-2", {"sink": "learnable", "learning-rate": 1.5e-2}),
}
STARTS = (0, 1, 2, 4)
CACHE = 127  # the trained context minus the current token
TOKENS = 100_000


def train(kind: str, out: Path, texts: list[str]) -> None:
    """Train the model of one kind, unless it exists."""
    if (out / "model").exists():
        return
    chosen = OPTIONS | KINDS[kind][1] | {"dtype": "bfloat16", "out": out}
    options = [f"--{name}={value}" for name, value in chosen.items()]
    resume = ["--resume"] if out.exists() else []
    subprocess.run(["sllm-jax", "train", *texts, f"--config={HERE / 'config.json'}", *options, *resume], check=True)


def measure(run: Path) -> list[float]:
    """Perplexity of the held-back text for each number of sinks, at one cache size: the trained context."""
    model, tokenizer = sllm_jax.load(run / "model")
    ids = encode(tokenizer, (run / "held_back.txt").read_text(encoding="utf-8"), start=True)[: TOKENS + 1]
    return [perplexity(np.concatenate(list(token_nll(model, ids, "streaming", s, CACHE - s)))) for s in STARTS]


def main(runs: Path, texts: list[str]) -> None:
    """Train and evaluate all models."""
    found = {}
    for kind in KINDS:
        train(kind, runs / kind, texts)
        found[kind] = measure(runs / kind)
    rows = [[name, *found[kind]] for kind, (name, _) in KINDS.items()]
    table = Table(["cache", *(f"{start} + {CACHE - start}" for start in STARTS)], rows).markdown()
    (HERE / "table3.md").write_text(table + "\n")
    lines = [f"{kind},{start},{CACHE - start},{found[kind][i]:.4f}" for kind in KINDS for i, start in enumerate(STARTS)]
    (HERE / "table3.csv").write_text("\n".join(["run,start_size,recent_size,perplexity", *lines]) + "\n")
    print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
