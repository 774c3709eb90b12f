"""Test the lower bounds in pyproject.toml, and the newest release of every dependency.

    pip install uv
    python tests/check_bounds.py lowest --python 3.11
    python tests/check_bounds.py highest --python 3.13

Each command installs the package and its extra `train` into a fresh environment (`lowest`: every dependency of
pyproject.toml at its lower bound) and runs the commands and some of the tests in it. This takes 3 minutes on two cores,
and 1 GB in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = ("sllm_jax", "convert", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
TOOLS = ("pytest", "beartype", "hypothesis")
TESTS = (
    "test_stream.py",
    "test_chat.py",
    "test_attention.py",
    "test_evaluation.py",
    "test_train_text.py",
)  # that need no PyTorch
LONGEST = 900  # seconds of a command
COMMANDS = """
sllm-jax models
sllm-jax convert TinyLlama/TinyLlama-1.1B-Chat-v1.0 converted
sllm-jax generate --model converted --prompt "The cat" --max-tokens 20 --ignore-eos
sllm-jax generate --max-tokens 20 --ignore-eos --weights int8
sllm-jax chat --prompts questions.jsonl --max-tokens 5
sllm-jax perplexity --text book.txt --max-tokens 300
sllm-jax train book.txt --config config.json --out run --steps 6 --warmup-steps 2 --batch-size 4 --save-every 3
sllm-jax generate --model run/model --max-tokens 20 --ignore-eos
sllm-jax convert run/model exported --to huggingface
sllm-jax generate --model exported --max-tokens 20 --ignore-eos
sllm-jax reproduce table1 --text book.txt --max-tokens 400 --out table1
"""
INPUTS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pages import prepare
prepare(Path("."), Path(sys.argv[1]) / "data/tiny-llama")
"""


def copy(names: tuple[str, ...], target: Path) -> None:
    """Files and folders of the repository into a new folder."""
    target.mkdir()
    for name in names:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target / name)


def install(uv: str, environment: Path, sources: Path, resolution: str, python: str) -> dict[str, str]:
    """A fresh environment with the package; the versions of all that is in it.

    "lowest-direct" takes what pyproject.toml names at its lower bound, and the newest of what that needs in turn.
    """
    tools = [line for line in PROJECT["optional-dependencies"]["test"] if line.startswith(TOOLS)]
    subprocess.run([uv, "venv", "--quiet", "--python", python, environment], check=True)
    command = [uv, "pip", "install", "--quiet", "--python", environment, "--resolution", resolution]
    subprocess.run([*command, f"{sources}[train]", *tools], check=True)
    found = subprocess.run(
        [uv, "pip", "list", "--python", environment, "--format", "json"], check=True, capture_output=True
    )
    return {entry["name"]: entry["version"] for entry in json.loads(found.stdout)}


def out_of_reach(versions: dict[str, str]) -> list[str]:
    """The bounds of pyproject.toml that nothing can be installed at, because another dependency asks for more."""
    extras = PROJECT["optional-dependencies"]
    wanted = [
        line.split(">=") for line in (*PROJECT["dependencies"], *extras["train"], *extras["plot"]) if ">=" in line
    ]
    return [
        f"{name} is {versions[name]}, not {bound}"
        for name, bound in wanted
        if re.sub(r"(\.0)+$", "", versions[name]) != re.sub(r"(\.0)+$", "", bound)
    ]


def failures(environment: Path, work: Path, tests: Path) -> list[str]:
    """The commands that fail in the new folder `work`, with the environment's programs, the tests last."""
    work.mkdir()
    python = environment / "bin/python"
    subprocess.run([python, "-c", INPUTS, tests], cwd=work, check=True)
    hub = {"HF_HUB_CACHE": str(work / "hub"), "HF_HUB_OFFLINE": "1"}
    variables = os.environ | hub | {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    names = " ".join(str(tests / name) for name in TESTS)
    pytest = (
        f"python -m pytest -q -p no:cacheprovider -o addopts=--import-mode=importlib -m 'not slow' -W default {names}"
    )
    failed = []
    for command in (*COMMANDS.strip().splitlines(), pytest):
        print(f"$ {command}", flush=True)
        where = tests.parent if command == pytest else work
        try:
            if subprocess.run(shlex.split(command), cwd=where, env=variables, timeout=LONGEST).returncode:
                failed.append(command)
        except subprocess.TimeoutExpired:
            failed.append(f"{command} (not done after {LONGEST} s)")
    return failed


def main() -> None:
    """Install, then run the tests and the commands; exit code 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["lowest", "highest"])
    parser.add_argument("--python", default="3.11")
    parser.add_argument("--uv", default="uv")
    chosen = parser.parse_args()
    resolution = {"lowest": "lowest-direct", "highest": "highest"}[chosen.which]
    with tempfile.TemporaryDirectory(prefix="bounds-") as folder:
        environment, sources, place = (Path(folder) / name for name in ("env", "sources", "place"))
        copy(SOURCES, sources)
        copy(("tests", "pyproject.toml"), place)  # away from the sources, so that what is installed is tested
        versions = install(chosen.uv, environment, sources, resolution, chosen.python)
        print(*(f"{name} {version}" for name, version in versions.items()), sep=", ")
        failed = out_of_reach(versions) if chosen.which == "lowest" else []
        failed += failures(environment, Path(folder) / "work", place / "tests")
    sys.exit("\n".join(["failed:", *failed]) if failed else None)


if __name__ == "__main__":
    main()
