"""Documentation pages: their code, and a folder with the files that their commands name."""

import json
import lzma
import os
import re
import shutil
import sys
from pathlib import Path

from training import CONFIG, documents

ROOT = Path(__file__).resolve().parents[1]
HUB_NAMES = ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def snippets(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in this language; "" for those that name none."""
    return [code for found, code in FENCE.findall(text_of(page)) if found == language]


def commands(page: str, language: str = "bash") -> list[str]:
    """The command lines in its blocks, continued ones joined."""
    lines = (line for code in snippets(page, language) for line in code.replace("\\\n", " ").splitlines())
    return [" ".join(line.partition("  #")[0].split()) for line in lines if line.strip()]


def make_cache(folder: Path, name: str, model: Path) -> dict[str, str]:
    """A cache of the hub that has `model` under `name`; the environment that uses it, without a network."""
    snapshot = folder / f"hub/models--{name.replace('/', '--')}/snapshots/{'0' * 40}"
    shutil.copytree(model, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0" * 40)
    return {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}


def prepare(folder: Path, model: Path) -> dict[str, str]:
    """Put small files into a folder under all the names that pages use; the environment for commands."""
    text = "\f".join(documents(6, 300))
    for name in ("book.txt", "held_back.txt", "bleak_house.txt", "million.txt", "wiki.test.raw"):
        (folder / name).write_text(text)
    for name in ("train_novels_a.txt.xz", "train_novels_b.txt.xz"):
        (folder / name).write_bytes(lzma.compress(text.encode()))
    small = json.dumps(CONFIG | {"vocab_size": 270})
    (folder / "config.json").write_text(small)
    (folder / "docs/sinks").mkdir(parents=True)
    (folder / "docs/sinks/config.json").write_text(small)
    for name in ("questions.jsonl", "mt_bench_question.jsonl"):
        (folder / name).write_text('{"question_id": 81, "turns": ["Who is there?", "And now?"]}\n')
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("test_*", "__pycache__", "tiny-*"))
    for config in (folder / "tests/data").glob("*.json"):
        config.write_text(small)
    scripts, cache = Path(sys.executable).parent, {}
    for name in HUB_NAMES:
        cache = make_cache(folder, name, model)
    return os.environ | cache | {"PATH": f"{scripts}:{os.environ['PATH']}"}
