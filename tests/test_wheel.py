"""The installed package: one top-level package, typed, that runs without PyTorch."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import numpy as np
import pytest

import sllm_jax

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
END = ("-py3-none-any.whl", ".tar.gz")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
VERSION = sllm_jax.__version__
BUNDLED = {str(path.relative_to(ROOT)) for path in (ROOT / "sllm_jax/bundled").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """What `python -m build` makes of a copy of the sources, without the network, and what it says."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in ("sllm_jax", "convert", "pyproject.toml", "MANIFEST.in", *PAGES, "LICENSE", "tests"):
        subprocess.run(["cp", "-r", ROOT / name, sources], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, sources]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # it warns
    return out, subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


@pytest.fixture(scope="module")
def wheel(release):
    return next(release[0].glob("*.whl"))


def test_the_release_builds_clean_and_passes_twine(release):
    out, said = release
    assert {path.name for path in out.iterdir()} == {f"sllm_jax-{VERSION}{end}" for end in END}
    assert not re.search("warning|deprecat|would be ignored", said.stdout + said.stderr, re.IGNORECASE)
    check = [sys.executable, "-m", "twine", "check", "--strict", *out.iterdir()]
    done = subprocess.run(check, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("PASSED")) == (0, 2), done.stdout


def test_the_version_stands_in_one_place():
    named = [path for path in (*ROOT.glob("*.toml"), *ROOT.glob("sllm_jax/**/*.py")) if VERSION in path.read_text()]
    assert named == [ROOT / "sllm_jax/common/version.py"]
    assert f"\n## {VERSION}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_metadata_is_complete(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"sllm_jax-{VERSION}.dist-info/METADATA"))
    for name in ("Summary", "Author", "License-Expression", "Keywords", "Requires-Python", "Project-URL"):
        assert metadata[name], name
    assert metadata["Version"] == VERSION
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert set(metadata.get_all("Provides-Extra")) == set(EXTRAS)
    assert not [link for link in metadata.get_all("Project-URL") if "https://" not in link]


def test_the_wheel_holds_one_package_with_convert_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sllm_jax"}
    expected = {f"sllm_jax/convert/{path.name}" for path in (ROOT / "convert").glob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "sllm_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == expected
    assert "sllm_jax/py.typed" in names
    assert {name for name in names if name.startswith("sllm_jax/bundled/")} == BUNDLED != set()


def test_the_source_distribution_holds_all_that_it_is_built_from_and_no_tests(release):
    with tarfile.open(next(release[0].glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= BUNDLED | set(PAGES) | {"LICENSE", "sllm_jax/py.typed", "convert/table.py"}
    assert not [name for name in names if name.startswith("tests")]


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
