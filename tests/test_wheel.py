"""What is installed: one top-level package, typed, that runs without PyTorch."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = {str(path.relative_to(ROOT)) for path in (ROOT / "sllm_jax/bundled").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources, without the network."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    copy_sources(sources)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", out]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, sources], check=True)
    return next(out.glob("*.whl"))


def copy_sources(folder):
    """Copy what the package is built from."""
    for name in ("sllm_jax", "convert", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", ROOT / name, folder], check=True)


def test_the_wheel_holds_one_package_with_convert_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sllm_jax"}
    expected = {f"sllm_jax/convert/{path.name}" for path in (ROOT / "convert").glob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "sllm_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == expected
    assert "sllm_jax/py.typed" in names
    assert {name for name in names if name.startswith("sllm_jax/bundled/")} == BUNDLED != set()


def test_the_source_distribution_holds_the_bundled_models(tmp_path):
    copy_sources(tmp_path)
    build = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=True)
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= BUNDLED
    assert "Package would be ignored" not in done.stderr


def test_an_installation_that_nobody_may_write_to(wheel, tmp_path):
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    for path in (*installed.rglob("*"), installed):
        path.chmod(0o555 if path.is_dir() else 0o444)
    files = sorted(installed.rglob("*"))
    program = f"import sllm_jax.cli; assert sllm_jax.__file__.startswith({str(installed)!r}); sllm_jax.cli.main()"
    environment = {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, "generate", "--max-tokens", "20"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()
    assert sorted(installed.rglob("*")) == files, "not even root has written there"


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
    subprocess.run([tmp_path / "env/bin/sllm-jax", "generate", "--max-tokens", "5"], check=True, cwd=tmp_path)
    np.save(tmp_path / "tokens.npy", np.arange(50))
    assert re.fullmatch(r"perplexity \S+ over 49 tokens\n", run("perplexity", "--tokens", "tokens.npy").stdout)
