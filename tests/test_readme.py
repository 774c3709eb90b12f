"""Every snippet of the README runs offline: the bundled model, and a small one under the Hugging Face name it uses."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training import CONFIG

import sllm_jax
from sllm_jax.bundle import bundled_names
from sllm_jax.models import KINDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
NAME = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for snippet in snippets("bash") for line in snippet.splitlines() if "sllm-jax" in line]


@pytest.fixture(scope="module")
def anywhere(data, tmp_path_factory):
    """A folder with the files that the README names, and the environment of a hub cache that holds its model."""
    folder = tmp_path_factory.mktemp("readme")
    snapshot = folder / f"hub/models--{NAME.replace('/', '--')}/snapshots/{'0' * 40}"
    shutil.copytree(data / "tiny-llama", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0" * 40)
    (folder / "book.txt").write_text("The cat sat by the window and saw the rain.\n" * 80)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 270}))
    (folder / "questions.jsonl").write_text('{"turns": ["Who is there?", "And now?"]}\n')
    bin_folder = str(Path(sys.executable).parent)
    environment = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    return folder, os.environ | environment | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(anywhere, command):
    folder, environment = anywhere
    _, _, command = command.rpartition("&& ")
    assert command.startswith("sllm-jax ")
    done = subprocess.run(shlex.split(command), cwd=folder, env=environment, check=True, capture_output=True)
    assert done.stdout.strip() or "convert" in command


@pytest.mark.parametrize("snippet", snippets("python"))
def test_python_runs(anywhere, snippet):
    folder, environment = anywhere
    subprocess.run([sys.executable, "-c", snippet], cwd=folder, env=environment, check=True, capture_output=True)


def test_the_gate_runs_the_test_command():
    assert "pip install -e '.[test]' && pytest\n" in README
    assert "\npytest" in (ROOT / ".ci/run").read_text()


def test_the_first_command_installs_and_needs_no_checkpoint():
    assert COMMANDS[0].startswith("pip install -e . && sllm-jax generate --prompt ")
    assert "--model" not in COMMANDS[0]


def test_bundled_models_are_named_as_they_are_and_have_their_card_linked():
    assert set(re.findall(r"bundled:[a-z-]+", README)) == set(bundled_names())
    for name in bundled_names():
        assert f"(sllm_jax/bundled/{name.removeprefix('bundled:')}/README.md)" in README


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_links_into_the_repository_lead_somewhere(link):
    assert link.startswith("https://") or (ROOT / link).exists()


def test_the_table_of_supported_models_is_that_of_the_command():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", README.split("## Supported models")[1], re.MULTILINE)
    assert rows[1:] == [(model_type, kind.models, kind.options) for model_type, kind in KINDS.items()]


def test_there_is_a_snippet_of_each_kind():
    assert len(COMMANDS) >= 5
    assert len(snippets("python")) == 2


@pytest.mark.parametrize("name", sllm_jax.__all__)
def test_public_names_are_there(name):
    assert getattr(sllm_jax, name)
