"""The command line in separate processes: signals, a closed pipe, and imports at start-up."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import SUMMARY


def endless(model):
    arguments = ["generate", "--model", model, "--ignore-eos", "--temperature", "1", "--prompt", "The cat"]
    return subprocess.Popen(
        [sys.executable, "-m", "sllm_jax", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_until_signals_are_taken_over(process):
    """Python itself takes SIGINT over, but not SIGTERM."""
    caught = re.compile(r"^SigCgt:\t(\w+)$", re.MULTILINE)
    while process.poll() is None:
        found = caught.search(Path(f"/proc/{process.pid}/status").read_text())
        if found and int(found[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


@pytest.mark.skipif(sys.platform != "linux", reason="sees in /proc when the process is ready")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("seconds", [0, 0.15, 1])
def test_a_signal_at_any_time_is_its_exit_code_without_a_traceback(model, seconds, number, code):
    with endless(model) as process:
        wait_until_signals_are_taken_over(process)
        time.sleep(seconds)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in err


def test_signals_are_taken_over_before_anything_that_takes_long_is_imported():
    program = "import sllm_jax.cli, sys; print({'typer', 'rich', 'numpy', 'jax', 'filelock'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_conversion_leaves_nothing(model, tmp_path, number):
    for seconds in (1.5, 2.2):
        command = [sys.executable, "-m", "sllm_jax", "convert", model, tmp_path / "out"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            time.sleep(seconds)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number or (tmp_path / "out/config.json").exists()
        assert b"Traceback" not in err
        assert [path.name for path in tmp_path.iterdir()] in ([], ["out"])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly(model, number, code):
    with endless(model) as process:
        assert len(process.stdout.read(2000)) == 2000
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in err
    assert SUMMARY.search(err.decode())


def test_a_reader_that_leaves_ends_it_quietly(model):
    with endless(model) as process:
        process.stdout.read(500)
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


def test_help_imports_neither_jax_nor_transformers():
    program = (
        "import sys, sllm_jax.cli; print([name for name in ('jax', 'flax', 'transformers') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout == "[]\n"
