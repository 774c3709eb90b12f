"""What is installed: one top-level package, typed, that runs without PyTorch."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources, without the network."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("sllm_jax", "convert", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", ROOT / name, sources], check=True)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", out]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, sources], check=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_one_package_with_convert_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sllm_jax"}
    expected = {f"sllm_jax/convert/{path.name}" for path in (ROOT / "convert").glob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "sllm_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == expected
    assert "sllm_jax/py.typed" in names


@pytest.mark.slow
def test_a_fresh_environment_without_pytorch(wheel, data, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0

    def run(*arguments):
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        command = [tmp_path / "env/bin/sllm-jax", *arguments, "--model", data / "tiny-llama"]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)

    text = run("generate", "--max-tokens", "20", "--ignore-eos")
    assert "20 tokens" in text.stderr
    np.save(tmp_path / "tokens.npy", np.arange(50))
    assert re.fullmatch(r"perplexity \S+ over 49 tokens\n", run("perplexity", "--tokens", "tokens.npy").stdout)
