"""The cache of compiled programs: kept between runs, and never with incomplete entries."""

import itertools
import os
import resource
import subprocess
import sys
import time
import warnings

import pytest
from filelock import FileLock

from sllm_jax.cli import program_cache
from sllm_jax.cli.program_cache import keep_programs
from sllm_jax.common import signals

GENERATE = ("generate", "--model", "bundled:falcon", "--max-tokens", "9", "--ignore-eos")
DAMAGE = (
    lambda content: content[:100],
    lambda content: b"",
    lambda content: bytes(len(content)),
    lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    lambda content: content[: len(content) // 2] + b"\x55" + content[len(content) // 2 + 1 :],
)


def run(home, *arguments):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    found = subprocess.run(
        [sys.executable, "-m", "sllm_jax", *arguments],
        env=kept | {"XDG_CACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout, found.stderr


def entries(home):
    return {path.name: path.read_bytes() for path in home.rglob("*-cache")}


def test_programs_are_kept_and_used_again_and_broken_ones_are_passed_over(tmp_path):
    text, _ = run(tmp_path, *GENERATE)
    kept = entries(tmp_path)
    assert any("extend" in name for name in kept)
    assert any("decode" in name for name in kept)
    assert run(tmp_path, *GENERATE)[0] == text
    assert entries(tmp_path).items() >= kept.items()  # on a slow machine another program is worth keeping
    assert not list(tmp_path.rglob("*.running"))
    for path, damage in zip(sorted(tmp_path.rglob("*-cache")), itertools.cycle(DAMAGE), strict=False):
        path.write_bytes(damage(path.read_bytes()))
    again, notes = run(tmp_path, *GENERATE)
    assert again == text
    assert "warning" not in notes


def test_the_option_turns_it_off(tmp_path):
    run(tmp_path, "--no-program-cache", *GENERATE)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def at_exit():
    """What is to be called when the process ends: functions with their arguments."""
    return []


@pytest.fixture
def before_jax(monkeypatch, tmp_path, at_exit):
    """As in a process that has not imported JAX, with a cache folder of its own; gives that of the programs."""
    monkeypatch.setattr(program_cache, "sys", type("before", (), {"modules": {}}))
    monkeypatch.setattr(program_cache, "atexit", type("never", (), {"register": lambda *call: at_exit.append(call)}))
    monkeypatch.setattr(program_cache.warnings, "showwarning", warnings.showwarning)  # monkeypatch puts it back
    monkeypatch.setattr(signals, "_clean_ups", [])
    monkeypatch.setattr(program_cache.warnings, "filterwarnings", lambda *_: None)
    for name in ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")  # monkeypatch puts it back
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = program_cache._folder()
    folder.mkdir(parents=True)
    yield folder
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)


def written(path, when: int, size: int = 1):
    path.write_bytes(bytes(size))
    os.utime(path, (when, when))
    return path


def test_what_a_killed_process_wrote_is_removed(before_jax):
    old, new = written(before_jax / "old-cache", 1000), written(before_jax / "new-cache", 3000)
    mark = written(before_jax / "17.running", 2000, 0)
    keep_programs()
    assert (old.exists(), new.exists(), mark.exists()) == (True, False, False)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(before_jax)
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0.5"


def test_leaving_at_once_costs_only_what_is_just_being_written(before_jax, at_exit):
    keep_programs()
    old, new = written(before_jax / "old-cache", time.time() - 60), written(before_jax / "new-cache", time.time() - 1)
    (path,) = before_jax.glob("*.running")
    os.utime(path, (1000, 1000))
    signals._clean_ups.pop()()
    program_cache._remove_half_written(before_jax)
    assert (old.exists(), new.exists(), path.exists()) == (True, True, True)  # the process still runs
    at_exit[0][1]._lock.release()
    program_cache._remove_half_written(before_jax)
    assert (old.exists(), new.exists(), path.exists()) == (True, False, False)


def test_what_a_full_disk_has_cut_short_is_removed(tmp_path):
    """Empty or half: JAX only warns, and would find it at every later start."""
    run(tmp_path, *GENERATE)
    whole = entries(tmp_path)
    largest = max(whole, key=lambda name: len(whole[name]))
    next(tmp_path.rglob(largest)).unlink()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole[largest]) // 2, unlimited[1]))
    try:
        _, notes = run(tmp_path, *GENERATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert entries(tmp_path) == {name: content for name, content in whole.items() if name != largest}
    assert "warning" not in notes
    assert not list(tmp_path.rglob("*.running"))


def test_what_could_not_be_written_is_removed_at_the_next_start_if_the_process_leaves_at_once(before_jax, at_exit):
    old = written(before_jax / "old-cache", 1000)
    keep_programs()
    written(before_jax / "half-cache", time.time() - 60)
    (path,) = before_jax.glob("*.running")
    os.utime(path, (time.time() - 90, time.time() - 90))
    ((_, mark, failures),) = at_exit
    warnings.showwarning("Error writing persistent compilation cache entry for 'jit_f': E: e", UserWarning, "", 1)
    assert len(failures) == 1
    signals._clean_ups.pop()()
    mark._lock.release()
    program_cache._remove_half_written(before_jax)
    assert list(before_jax.iterdir()) == [old]


def test_what_a_running_process_writes_stays(before_jax):
    mark = written(before_jax / "17.running", 2000, 0)
    with FileLock(mark):
        new = written(before_jax / "new-cache", 3000)
        keep_programs()
        assert new.exists()
        assert mark.exists()


def test_the_oldest_go_when_there_are_too_many(before_jax, monkeypatch):
    monkeypatch.setattr(program_cache, "MOST_BYTES", 25)
    paths = [written(before_jax / f"{i}-cache", 1000 + i, 10) for i in range(4)]
    keep_programs()
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_a_folder_that_cannot_be_written_is_no_error(before_jax, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.parametrize("name", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"])
def test_what_people_have_decided_stays(before_jax, monkeypatch, name):
    monkeypatch.setenv(name, "mine")
    keep_programs()
    assert os.environ[name] == "mine"
    assert not list(before_jax.iterdir())
