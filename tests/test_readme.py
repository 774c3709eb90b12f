"""Every snippet of the README runs offline: the bundled model, and a small one under the Hugging Face name it uses."""

import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from fetch_smollm2 import SMOLLM2
from make_supported_models import table
from pages import ROOT, commands, prepare, snippets, text_of

import sllm_jax
from sllm_jax.loading.bundle import bundled_names

README = text_of("README.md")
FETCHED = '"$(python tests/fetch_smollm2.py)"'
SHRUNK = {  # what would take long
    r"sllm-jax demo$": "sllm-jax demo --max-tokens 40",
    r"(chat --model \S+)$": r"\1 --max-tokens 8",
}
COMMANDS = [command for command in commands("README.md") if "sllm-jax" in command]


@pytest.fixture(scope="module")
def anywhere(data, tmp_path_factory):
    """A folder with the files that the README names, and an environment."""
    folder = tmp_path_factory.mktemp("readme")
    return folder, prepare(folder, data / "tiny-llama")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(anywhere, command):
    folder, environment = anywhere
    _, _, command = command.rpartition("&& ")
    assert command.startswith("sllm-jax ")
    if FETCHED in command:
        if not SMOLLM2.is_there():
            pytest.skip("needs SmolLM2: run `python tests/fetch_smollm2.py` once while online")
        command = command.replace(FETCHED, str(SMOLLM2.path()))
    for pattern, less in SHRUNK.items():
        command = re.sub(pattern, less, command)
    called = {"cwd": folder, "env": environment, "check": True, "capture_output": True}
    done = subprocess.run(shlex.split(command), input=b"Who is there?\n", **called)
    assert done.stdout.strip() or "convert" in command


@pytest.mark.parametrize("snippet", snippets("README.md", "python"))
def test_python_runs(anywhere, snippet):
    folder, environment = anywhere
    subprocess.run([sys.executable, "-c", snippet], cwd=folder, env=environment, check=True, capture_output=True)


def test_devices_are_listed_as_it_says(anywhere):
    folder, environment = anywhere
    [command] = (command for command in commands("README.md", "") if command.startswith("python "))
    done = subprocess.run(shlex.split(command), cwd=folder, env=environment, check=True, capture_output=True, text=True)
    assert "Device" in done.stdout


def test_extras_are_there():
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(\w+)\]'", README)) <= set(extras)


def test_the_gate_runs_the_test_command():
    assert "pip install -e '.[test]' && pytest\n" in README
    assert "\npytest" in (ROOT / ".ci/run").read_text()


def test_the_first_command_installs_and_needs_no_checkpoint():
    assert COMMANDS[0] == "pip install -e . && sllm-jax demo"


def test_bundled_models_are_named_as_they_are_and_have_their_card_linked():
    assert set(re.findall(r"bundled:[a-z-]+", README)) == set(bundled_names())
    for name in bundled_names():
        assert f"(sllm_jax/bundled/{name.removeprefix('bundled:')}/README.md)" in README


def test_the_table_of_supported_models_is_that_of_the_registry():
    text = README.split("## Supported models")[1].split("\n## ")[0]
    assert [line for line in text.splitlines() if line.startswith("|")] == table()


def test_there_is_a_snippet_of_each_kind():
    assert len(COMMANDS) >= 5
    assert len(snippets("README.md", "python")) == 2


@pytest.mark.parametrize("name", sllm_jax.__all__)
def test_public_names_are_there(name):
    assert getattr(sllm_jax, name)


def test_others_are_compared_with_a_date_and_with_links():
    section = README.split("## Compared with mlx-lm, llama.cpp and transformers")[1].split("\n## ")[0]
    assert re.search(r"as of \w+ \d{4}", section)
    assert len(set(re.findall(r"\(https://[^)]+\)", section))) >= 10
    widths = {row.count("|") for row in section.splitlines() if row.startswith("|")}
    assert widths == {6}


def test_the_cuda_extras_are_the_versions_that_it_says():
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    for extra, cuda in re.findall(r"pip install -e '\.\[(cuda\w*)\]' +# NVIDIA, CUDA (\d+)", README):
        assert extras[extra][0].startswith(f"jax[cuda{cuda}]")
    assert {extra for extra in extras if extra.startswith("cuda")} == {"cuda", "cuda12"}
