"""Commands killed at known and at random moments; `measure_kills.py` is the long version."""

import random
import resource
import signal
import subprocess
import sys
import time

import measure_kills
import pytest


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("job", ["convert", "perplexity"])
def test_a_killed_command_that_is_started_again_ends_as_one_left_alone(job, cache, tmp_path):
    """At two random moments, then to the end; perplexity saves three times a second."""
    whole = measure_kills.prepared(tmp_path / "whole")
    begun = time.perf_counter()
    code, text, err = measure_kills.run(job, whole, cache)
    assert code == 0, err
    expected = measure_kills.JOBS[job].result(whole, text)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    place, drawn = measure_kills.prepared(tmp_path / "killed"), random.Random(seed)
    rows = measure_kills.chain(job, place, cache, time.perf_counter() - begun, expected, drawn, kills=2)
    assert [row for row in rows if row[-1]] == []


def killed_when(there, command, number):
    """Kills a process as soon as this is there; gives its exit code."""
    with subprocess.Popen([sys.executable, "-m", "sllm_jax", *map(str, command)], stderr=subprocess.PIPE) as process:
        while not there():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.002)
        process.send_signal(number)
        _, err = process.communicate()
    assert b"Traceback" not in err
    return process.returncode


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_conversion_that_is_killed_while_it_writes(model, tmp_path, number, code):
    command = ("convert", model, tmp_path / "out")
    assert killed_when(lambda: list(tmp_path.glob(".out.*.tmp")), command, number) == code
    assert bool(list(tmp_path.iterdir())) == (number == signal.SIGKILL)
    subprocess.run([sys.executable, "-m", "sllm_jax", *map(str, command)], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_conversion_onto_a_full_disk_leaves_nothing(model, tmp_path):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, unlimited[1]))
    command = [sys.executable, "-m", "sllm_jax", "convert", model, tmp_path / "out"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert "could not be written" in found.stderr
    assert not list(tmp_path.iterdir())
