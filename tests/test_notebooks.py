"""The notebooks run from the first cell to the last, both forms agree, and their outputs are committed."""

import ast
import importlib.util
import subprocess

import jupytext
import nbformat
import pytest
from make_notebooks import FOLDER, NAMES, execute
from pages import make_cache

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(params=NAMES)
def notebook(request):
    return nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_four_and_each_in_two_forms():
    assert NAMES == ["attention_sinks", "inside_the_cache", "quickstart", "speed"]
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_say_the_same(name):
    text, notebook = jupytext.read(FOLDER / f"{name}.py"), nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert [(cell.cell_type, cell.source) for cell in text.cells] == [
        (cell.cell_type, cell.source) for cell in notebook.cells
    ]


def test_what_it_showed_is_kept(notebook):
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert outputs


@pytest.fixture
def first_cell(notebook, tmp_path, monkeypatch):
    """Runs it in a folder, where the package is missing; what it would have installed."""
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append((command[3:], check)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def run(folder, source="None"):
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        exec(code_of(notebook)[0].source.replace("SOURCE = None", f"SOURCE = {source}"), {})
        return calls

    return run


def test_in_a_clone_it_installs_the_clone(first_cell, tmp_path):
    (tmp_path / "clone/sllm_jax/common").mkdir(parents=True)
    (tmp_path / "clone/sllm_jax/common/version.py").touch()
    found = first_cell(tmp_path / "clone/notebooks")
    assert found == [(["install", "--quiet", "-e", str(tmp_path / "clone"), "matplotlib", "pillow"], True)]


def test_elsewhere_it_installs_from_its_variable_or_says_that_it_must_be_set(first_cell, tmp_path):
    with pytest.raises(AssertionError, match="this notebook is not in a clone: set SOURCE"):
        first_cell(tmp_path / "notebooks")
    found = first_cell(tmp_path / "notebooks", source="'git+https://example.org/it'")
    assert found == [(["install", "--quiet", "git+https://example.org/it", "matplotlib", "pillow"], True)]


def test_where_it_is_installed_nothing_is_done(notebook, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    exec(code_of(notebook)[0].source, {})


def test_it_installs_first_and_defines_nothing(notebook):
    first, *rest = (cell.source for cell in code_of(notebook))
    assert "pip" in first
    for node in (node for source in rest for node in ast.walk(ast.parse(source))):
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef)
        assert not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda))


def test_it_runs(notebook):
    execute(notebook)


def test_quickstart_runs_with_a_hugging_face_name(data, tmp_path, monkeypatch):
    """The cell that says so, on a small model under that name."""
    for name, value in make_cache(tmp_path, HUB_NAME, data / "tiny-llama").items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(FOLDER / "quickstart.ipynb", as_version=4)
    [cell] = (cell for cell in code_of(notebook) if "NAME =" in cell.source)
    cell.source = "import sllm_jax\n" + cell.source.replace("bundled:gpt-neox", HUB_NAME)
    assert f'NAME = "{HUB_NAME}"' in cell.source
    notebook.cells = [cell]
    execute(notebook)
    assert "MODEL:" in cell.outputs[0].text
