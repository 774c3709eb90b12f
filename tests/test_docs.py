"""Every page except the README: its code runs, its commands are valid, its links have targets."""

import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
import typer
from pages import FENCE, ROOT, commands, prepare, snippets, text_of

from sllm_jax.cli.app import app
from sllm_jax.reproduce import EXPERIMENTS

PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "sllm_jax/bundled/*/*.md")
    for path in ROOT.glob(pattern)
)
WITH_COMMANDS = [page for page in PAGES if page != "README.md" and not re.match(r"docs/report/.+/", page)]
GATE = ("pip install -e '.[dev]'", "bash .ci/run")
SHRUNK = {  # what would take long, or all of the machine's memory
    r"--steps \d+": "--steps 3",
    r"--max-tokens 2000$": "--max-tokens 200",
    r"--(warmup-steps|pairs) \d+": r"--\1 2",
    r"(--streams \d+ *)+": "--streams 2 ",
    r"--rounds \d+": "--rounds 1",
    r"(llama-7b.json) --dtype bfloat16": r"\1 --rounds 1",
    r"--old \d+": "--old 1500",
    r"--recent-size (2044|4092)": "--recent-size 60",
    " --against hf": "",  # has a test of its own
    " --until-full": "",  # the same
    "reproduce all": "reproduce fig2",  # the same
    " --(questions|max-questions) [^ ]+": "",
    r"SmolLM2-135M-Instruct\.Q4_1\.gguf": "bundled:llama",  # has tests of its own
}
RUN = [
    (page, command)
    for page in WITH_COMMANDS
    for language in ("bash", "")
    for command in commands(page, language)
    if command.startswith(("sllm-jax ", "python tests/measure"))
]


@pytest.fixture(scope="module")
def anywhere(data, tmp_path_factory):
    """For each page a folder with all that pages name, and an environment."""

    @cache
    def folder_for(page):
        folder = tmp_path_factory.mktemp("docs")
        return folder, prepare(folder, data / "tiny-llama")

    return folder_for


@pytest.mark.parametrize(("page", "command"), RUN)
def test_commands_run(anywhere, page, command):
    folder, environment = anywhere(page)
    for pattern, less in SHRUNK.items():
        command = re.sub(pattern, less, command)
    done = subprocess.run(shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if snippets(page, "python")])
def test_python_runs_from_the_first_block_to_the_last(anywhere, page):
    folder, environment = anywhere(page)
    program = "\n".join(snippets(page, "python"))
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_other_commands_of_contributing_are_those_of_the_tests():
    """What is not run here is the gate itself, tests, a notebook and a release, which have tests of their own."""
    others = [command for command in commands("CONTRIBUTING.md") if ("CONTRIBUTING.md", command) not in RUN]
    assert tuple(others[:2]) == GATE
    assert [command.split()[0] for command in others[2:]] == ["pytest", "pytest", *["python"] * 4, "twine"]
    gate = (ROOT / ".ci/run").read_text()
    assert "pip install --quiet -e '.[dev]'" in gate


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
    """Wherever one stands, also inside a line: every option exists, and every script and test that is named."""
    prose = FENCE.sub("", text_of(page))
    paragraphs = [" ".join(lines.split()) for lines in re.split(r"\n\n|\n(?=[|-] ?)", prose)]
    inline = [code for paragraph in paragraphs for code in re.findall(r"`([^`]+)`", paragraph)]
    found = [*commands(page), *commands(page, ""), *inline]
    for command in found:
        words = shlex.split(command.replace("...", "").rpartition("&& ")[2]) if "'" not in command else command.split()
        if words[:1] == ["sllm-jax"] and len(words) > 1:
            _parse(words[1:])
        for word in words if words and words[0] in ("python", "pytest") else []:
            assert not re.fullmatch(r"(tests|docs|notebooks)/.*\.py", word) or (ROOT / word).exists(), command


def _parse(words: list[str]) -> None:
    """Raises for an option or a command that is not there."""
    if "COMMAND" in words:
        return
    whole = typer.main.get_command(app)
    command = whole if words[0].startswith("--") else whole.commands[words[0]]
    if words[0] == "reproduce" and len(words) > 1:
        assert words[1] in {*EXPERIMENTS, "all", "EXPERIMENT"}, words
    known = {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
    for word in words:
        assert not word.startswith("--") or word.partition("=")[0] in {*known, "--help"}, words


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), link


def test_the_text_of_the_pictures_is_the_body_of_eltecs_file(tmp_path):
    """Headings, paragraphs and verses, white space joined; no front, no printers' line; another text is told."""
    body = "<div><head>I.\n A</head><p>It  <hi>was</hi>\ncold.</p><quote><l>So</l></quote><p> </p></div>"
    printers = "<trailer>LONDON: BRADBURY AND EVANS, PRINTERS, WHITEFRIARS.</trailer>"
    text = f"<text><front><p>Title</p></front><body>{body}<trailer>THE END.</trailer>{printers}</body></text>"
    (tmp_path / "in.xml").write_text(f'<TEI xmlns="http://www.tei-c.org/ns/1.0">{text}</TEI>')
    script = [sys.executable, ROOT / "docs/sinks/bleak_house.py", tmp_path / "in.xml", tmp_path / "out.txt"]
    done = subprocess.run(script, check=True, capture_output=True, text=True)
    assert (tmp_path / "out.txt").read_text() == "I. A\n\nIt was cold.\n\nSo\n\nTHE END.\n"
    assert done.stdout == "wrote 33 bytes, which are not those of the pictures\n"
