"""The structure of the package: no import cycles, no room that imports a later one, and no overlong file."""

import ast
import re
from graphlib import TopologicalSorter

import pytest
from pages import ROOT, text_of

LONGEST = 400  # lines


def module_of(path):
    """sllm_jax/models/llama.py -> sllm_jax.models.llama; convert/ is installed inside."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("sllm_jax", *parts) if parts[0] == "convert" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for folder in ("sllm_jax", "convert") for path in sorted((ROOT / folder).rglob("*.py"))}


def imports_of(module):
    """The modules of ours that a file imports anywhere, those that only its annotations need left out."""
    found = set()
    for node in _nodes(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {name if (name := f"{node.module}.{alias.name}") in FILES else node.module for alias in node.names}
    return {name for name in found if name in FILES} - {module}


def _nodes(tree):
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _nodes(node)


GRAPH = {module: imports_of(module) for module in FILES}


def rooms():
    """Each room of the map in CONTRIBUTING, as the names of its files and folders."""
    rows = re.findall(r"^\| (`[^|]+) \|[^|]+\|[^|]+\|$", text_of("CONTRIBUTING.md").split("## A new family")[0], re.M)
    return [re.findall(r"`([^`]+)`", row) for row in rows]


def room_of(module):
    name = str(FILES[module].relative_to(ROOT)).removeprefix("sllm_jax/")
    name = f"{name.partition('/')[0]}/" if "/" in name else name
    return next(number for number, room in enumerate(rooms()) if name in room)


def test_no_circle():
    assert len(list(TopologicalSorter(GRAPH).static_order())) == len(FILES) > 80


@pytest.mark.parametrize("module", FILES)
def test_no_room_imports_a_higher_one(module):
    higher = [imported for imported in GRAPH[module] if room_of(imported) > room_of(module)]
    assert higher == []


def test_every_room_is_there():
    names = [name for room in rooms() for name in room]
    assert [name for name in names if not ((ROOT / "sllm_jax" / name).exists() or (ROOT / name).exists())] == []


@pytest.mark.parametrize("folder", ["sllm_jax", "convert", "tests", "notebooks", "docs"])
def test_no_file_is_too_long(folder):
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}
