"""Installation hints for extras, by the source of the package."""

import json
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
from pages import ROOT

from sllm_jax.common import extras
from sllm_jax.common.extras import how_to_install

WHEEL = "file:///tmp/sllm_jax-0.1.0-py3-none-any.whl"
ORIGINS = {
    "wheel": ({"url": WHEEL, "archive_info": {}}, f"run pip install 'sllm-jax[plot] @ {WHEEL}'"),
    "git": (
        {"url": "https://example.org/sllm_jax", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
        "run pip install 'sllm-jax[plot] @ git+https://example.org/sllm_jax@c0ffee'",
    ),
    "folder": ({"url": "file:///home/me/my%20clone", "dir_info": {}}, "run pip install '.[plot]' in /home/me/my clone"),
    "index": (None, "run pip install 'sllm-jax[plot]'"),
}


def test_in_a_clone_the_clone_is_installed_from():
    assert how_to_install("plot") == f"run pip install -e '.[plot]' in {ROOT}"


@pytest.mark.parametrize(("origin", "expected"), ORIGINS.values(), ids=ORIGINS)
def test_elsewhere_it_comes_from_where_the_package_came_from(monkeypatch, tmp_path, origin, expected):
    monkeypatch.setattr(extras, "_CLONE", tmp_path)
    found = SimpleNamespace(read_text=lambda name: origin and json.dumps(origin))
    monkeypatch.setattr(extras, "distribution", lambda name: found)
    assert how_to_install("plot") == expected


def test_a_package_that_is_not_installed_is_no_failure(monkeypatch, tmp_path):
    def missing(name):
        raise PackageNotFoundError

    monkeypatch.setattr(extras, "_CLONE", tmp_path)
    monkeypatch.setattr(extras, "distribution", missing)
    assert how_to_install("train") == "run pip install 'sllm-jax[train]'"


def test_no_message_sends_people_to_a_name_on_an_index():
    """Only `how_to_install` speaks of installing this package, and of a name only where one was installed from."""
    sources = [path for folder in ("sllm_jax", "convert") for path in (ROOT / folder).rglob("*.py")]
    named = [path.name for path in sources if "pip install" in path.read_text()]
    assert named == ["extras.py"]
    for page in (*ROOT.glob("*.md"), *ROOT.glob("notebooks/*.py"), *ROOT.glob("docs/**/*.md")):
        assert "pip install sllm" not in page.read_text()
        assert "'sllm-jax[" not in page.read_text()
