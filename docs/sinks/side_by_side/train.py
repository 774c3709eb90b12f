"""Trains three models that differ only in their sink: `bundled:sink-none`, `sink-zero`, `sink-learnable`.

    python docs/sinks/side_by_side/train.py RUNS train_novels_a.txt.xz

writes RUNS/echoes.txt and trains in RUNS/none, RUNS/zero and RUNS/learnable, resuming interrupted runs. Then it writes
the three folders of `sllm_jax/bundled`, except their README.
"""

import lzma
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sllm_jax.common.files import load_json, write_json
from sllm_jax.convert import to_huggingface

FOLDER = Path(__file__).parents[3] / "sllm_jax/bundled"
CONFIG = Path(__file__).with_name("config.json")
OPTIONS = {"steps": 1000, "batch-size": 16, "learning-rate": 1.2e-2, "hold-back": 2, "save-every": 500}
KINDS = ("none", "zero", "learnable")
BOOKS, SENTENCES = 24, 4000  # books of the text, sentences of each book


def with_echoes(text: str) -> str:
    """Sentences of novels; after about every second one, one of the three before it is repeated.

    An attention head then finds something useful part of the time, and must attend elsewhere otherwise.
    """
    drawn, books = random.Random(0), []
    for book in text.split("\f")[:BOOKS]:
        said: list[str] = []
        for i, sentence in enumerate(re.findall(r"[^.!?]{10,120}[.!?][\"\u201d\u2019]?\s", book)[:SENTENCES]):
            said.append(sentence.strip())
            if drawn.random() < 0.5 and i > 3:
                said.append(said[-1 - drawn.randrange(1, 4)])
        books.append(" ".join(said))
    return "\f".join(books)


def train(kind: str, run: Path, text: Path) -> None:
    """Train one model, unless it exists."""
    if (run / "model").exists():
        return
    options = [f"--{name}={value}" for name, value in (OPTIONS | {"sink": kind, "config": CONFIG, "out": run}).items()]
    resume = ["--resume"] if run.exists() else []
    subprocess.run(["sllm-jax", "train", str(text), *options, *resume], check=True)


def bundle(kind: str, run: Path) -> None:
    """Export in the Hugging Face layout, in bfloat16, even a model that Hugging Face's code would run wrongly."""
    out = FOLDER / f"sink-{kind}"
    with tempfile.TemporaryDirectory() as scratch:
        plain, written = Path(scratch) / "plain", Path(scratch) / "written"
        shutil.copytree(run / "model", plain)
        config = load_json(plain / "config.json")
        write_json(plain / "config.json", {**config, "attention_sink": "none"})
        to_huggingface(plain, written, "bfloat16")
        write_json(written / "config.json", load_json(written / "config.json") | {"attention_sink": kind})
        shutil.copytree(written, out, dirs_exist_ok=True)
    shutil.copy(run / "loss.png", out)


def main(runs: Path, novels: Path) -> None:
    """Train and export all models."""
    runs.mkdir(exist_ok=True)
    text = runs / "echoes.txt"
    text.write_text(with_echoes(lzma.decompress(novels.read_bytes()).decode()), encoding="utf-8")
    for kind in KINDS:
        train(kind, runs / kind, text)
        bundle(kind, runs / kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
