"""The command line in processes of its own: Ctrl-C, a reader that leaves, and what a start imports."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_cli import SUMMARY


def endless(model):
    arguments = ["generate", "--model", model, "--ignore-eos", "--temperature", "1", "--prompt", "The cat"]
    return subprocess.Popen(
        [sys.executable, "-m", "sllm_jax", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextmanager
def no_ctrl_c():
    """Processes that are started meanwhile ignore the signal, until they take it over."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def wait_until_ctrl_c_is_taken_over(process):
    caught = re.compile(r"^SigCgt:\t(\w+)$", re.MULTILINE)
    while process.poll() is None:
        found = caught.search(Path(f"/proc/{process.pid}/status").read_text())
        if found and int(found[1], 16) >> (signal.SIGINT - 1) & 1:
            return
        time.sleep(0.001)


@pytest.mark.skipif(sys.platform != "linux", reason="sees in /proc when the process is ready")
@pytest.mark.parametrize("seconds", [0, 0.05, 0.15, 0.5, 1, 2])
def test_ctrl_c_at_any_time_is_exit_code_130_without_a_traceback(model, seconds):
    with no_ctrl_c():
        process = endless(model)
    with process:
        wait_until_ctrl_c_is_taken_over(process)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_ctrl_c_is_taken_over_before_anything_that_takes_long_is_imported():
    program = "import sllm_jax.cli, sys; print({'typer', 'rich', 'numpy', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_ctrl_c_in_a_conversion_leaves_nothing(model, tmp_path):
    for seconds in (0.5, 1.5, 2.2):
        command = [sys.executable, "-m", "sllm_jax", "convert", model, tmp_path / "out"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130 or (tmp_path / "out/config.json").exists()
        assert b"Traceback" not in err
        assert [path.name for path in tmp_path.iterdir()] in ([], ["out"])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_ctrl_c_stops_cleanly(model):
    with endless(model) as process:
        assert len(process.stdout.read(2000)) == 2000
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
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
