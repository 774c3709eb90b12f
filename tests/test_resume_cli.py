"""Commands that resume in a folder: one process at a time, and exit code 2 with a clear error for damaged folders."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from test_cli import assert_refused
from training import CONFIG, write_text

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import work_folder
from sllm_jax.evaluate.evaluation import Evaluation, EvaluationSettings


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = [cut, flip_a_bit, pipe]


def damaged_copy(folder, target, pattern, damage):
    """A copy with the one file that the pattern names damaged."""
    shutil.copytree(folder, target)
    (path,) = target.glob(pattern)
    damage(path)


# Perplexity.


@pytest.fixture(scope="module")
def interrupted(model, loaded, tmp_path_factory):
    """The arguments of an evaluation without its folder, and a folder where it was interrupted."""
    place = tmp_path_factory.mktemp("interrupted")
    token_ids = np.random.default_rng(0).integers(3, 420, 100)
    np.save(place / "tokens.npy", token_ids)
    arguments = ["perplexity", "--model", model, "--recent-size", 20, "--chunk-size", 7]
    arguments += ["--tokens", place / "tokens.npy"]
    names = {"model": str(model), "revision": None}
    (place / "kept").mkdir()
    evaluation = Evaluation(place / "kept", loaded[0], [token_ids], EvaluationSettings("streaming", 4, 20, 7), names)
    steps = evaluation.steps()
    for _ in range(10):
        next(steps)
    evaluation.save()
    return arguments, place / "kept"


@pytest.mark.parametrize("pattern", ["settings.json", "nll.npy", "checkpoints/*/params/manifest.ocdbt"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_of_perplexity_is_one_sentence(run, interrupted, tmp_path, pattern, damage):
    arguments, kept = interrupted
    damaged_copy(kept, tmp_path / "kept", pattern, damage)
    if damage is flip_a_bit and pattern == "nll.npy":  # the last value is not found yet
        assert run(*arguments, "--resume", tmp_path / "kept") == run(*arguments)
    else:
        assert_refused(run(*arguments, "--resume", tmp_path / "kept"), str(tmp_path / "kept"))


@pytest.mark.parametrize("option", ["--nll-out", "--curve-out"])
@pytest.mark.parametrize("name", ["kept/nll.npy", "kept", "kept/below/nll.npy", "link/nll.npy", "kept/../kept/curve"])
def test_a_result_in_the_folder_that_is_removed_is_refused(run, tmp_path, option, name):
    """Whether the folder is there or not; the second time it is."""
    (tmp_path / "link").symlink_to("kept")
    np.save(tmp_path / "tokens.npy", np.arange(9))
    arguments = ["perplexity", "--model", tmp_path / "none", "--tokens", tmp_path / "tokens.npy"]
    for _ in range(2):
        refused = run(*arguments, "--resume", tmp_path / "kept", option, tmp_path / name)
        assert_refused(refused, f"{option} {tmp_path / name} is in the folder of --resume, which is removed at the end")
        (tmp_path / "kept/below").mkdir(parents=True, exist_ok=True)


# Training.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The arguments of a run without its folder, its folder, and what it printed."""
    place = tmp_path_factory.mktemp("trained")
    (place / "config.json").write_text(json.dumps(CONFIG))
    arguments = ["train", write_text(place), "--config", place / "config.json", "--steps", 6, "--batch-size", 4]
    arguments += ["--warmup-steps", 2, "--learning-rate", 0.01, "--save-every", 3]
    command = [sys.executable, "-m", "sllm_jax", *map(str, arguments), "--out", str(place / "run")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return arguments, place / "run", done.stdout


OF_TRAINING = [
    *("settings.json", "learned.npy", "held_back.npy", "held_back.txt", "tokenizer/tokenizer.json", "metrics.csv"),
    "checkpoints/*/params/manifest.ocdbt",
]


@pytest.mark.parametrize("pattern", OF_TRAINING)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_of_train_is_one_sentence(run, trained, tmp_path, pattern, damage):
    arguments, folder, _ = trained
    damaged_copy(folder, tmp_path / "run", pattern, damage)
    assert_refused(run(*arguments, "--out", tmp_path / "run", "--resume"), str(tmp_path / "run"))


WRONG_SETTINGS = {"no config": {"config": 5}, "no digests": {"files": []}, "a list of configs": {"config": [1]}}


@pytest.mark.parametrize("change", WRONG_SETTINGS)
def test_settings_of_another_form_are_one_sentence(run, trained, tmp_path, change):
    arguments, folder, _ = trained
    path = shutil.copytree(folder, tmp_path / "run") / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | WRONG_SETTINGS[change]))
    assert_refused(run(*arguments, "--out", tmp_path / "run", "--resume"), "settings.json is damaged")


def test_a_wrong_digit_of_a_finished_run_is_no_figure(run, trained, tmp_path):
    arguments, folder, printed = trained
    again = [*arguments, "--out", shutil.copytree(folder, tmp_path / "run"), "--resume"]
    assert run(*again)[:2] == (0, printed)
    path, figure = tmp_path / "run/metrics.csv", printed.split()[2]
    path.write_text(path.read_text().replace(f",{figure[:3]}", f",{figure[:2]}0"))
    assert_refused(run(*again), "metrics.csv is damaged: it differs from what was saved; remove it")
    path.unlink()
    code, out, err = run(*again)
    assert (code, out) == (0, "")
    assert "metrics.csv has no measures" in err


# Reproduce.

PAGE_DAMAGE = {
    "not UTF-8": (lambda path: path.write_bytes(b"# Figure \xff\xfe"), "fig2.md is damaged"),
    "empty": (Path.touch, "fig2 was made by another command"),
    "a pipe": (os.mkfifo, "fig2.md is missing, or is not a file; remove"),
    "a folder": (os.mkdir, "fig2.md is missing, or is not a file; remove"),
    "gone": (lambda _: None, "fig2.md is missing, or is not a file; remove"),
}


@pytest.mark.parametrize("damage", PAGE_DAMAGE)
def test_a_damaged_folder_of_reproduce_is_one_sentence(run, model, tmp_path, damage):
    (tmp_path / "text.txt").write_text("The cat sat by the window and saw the rain. " * 60)
    (tmp_path / "all/fig2").mkdir(parents=True)
    make, message = PAGE_DAMAGE[damage]
    make(tmp_path / "all/fig2/fig2.md")
    arguments = ["reproduce", "all", "--model", model, "--text", tmp_path / "text.txt", "--out", tmp_path / "all"]
    assert_refused(run(*arguments), message)
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["fig2"]


def test_a_pipe_in_the_place_of_the_page_is_refused(run, model, tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat by the window and saw the rain. " * 60)
    (tmp_path / "all").mkdir()
    os.mkfifo(tmp_path / "all/README.md")
    arguments = ["reproduce", "all", "--model", model, "--text", tmp_path / "text.txt", "--out", tmp_path / "all"]
    assert_refused(run(*arguments), "holds something other than a report (README.md); name a new folder")


# Two processes.

HOLDS = """
import sys
from pathlib import Path
from sllm_jax.common.files import work_folder
from sllm_jax.common.signals import leave_on_signals
leave_on_signals()
with work_folder(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A process that works in the folder `held`."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "held")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process


def test_a_folder_is_worked_in_by_one_process_at_a_time(held, tmp_path):
    with (
        pytest.raises(SllmError, match=r"another process is using .*held; wait until it ends, or name another folder"),
        work_folder(tmp_path / "held"),
    ):
        pytest.fail("not reached")
    assert [path.name for path in (tmp_path / "held").iterdir()] == [".lock"]
    held.communicate()
    assert not (tmp_path / "held").exists()
    with work_folder(tmp_path / "held"):
        pass


def test_a_killed_process_keeps_nobody_out(held, tmp_path):
    held.kill()
    held.wait()
    assert (tmp_path / "held/.lock").exists()
    with work_folder(tmp_path / "held") as folder:
        (folder / "precious").touch()
    assert [path.name for path in (tmp_path / "held").iterdir()] == ["precious"]


def test_a_process_that_is_asked_to_stop_leaves_no_mark(held, tmp_path):
    held.terminate()
    assert held.wait() == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_commands_work_in_no_folder_of_another_process(run, model, interrupted, trained, tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat by the window and saw the rain. " * 60)
    (tmp_path / "report").mkdir()
    reproduce = ["reproduce", "all", "--model", model, "--text", tmp_path / "text.txt"]
    for arguments, folder, *option in (
        (*interrupted, "--resume"),
        (*trained[:2], "--resume", "--out"),
        (reproduce, tmp_path / "report", "--out"),
    ):
        place = shutil.copytree(folder, tmp_path / "places" / folder.name)
        before = sorted(place.rglob("*"))
        with FileLock(place / ".lock"):
            assert_refused(run(*arguments, *option, place), f"another process is using {place}; wait until it ends")
        (place / ".lock").unlink(missing_ok=True)
        assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("kind", [os.mkdir, os.mkfifo])
def test_what_is_in_the_place_of_the_mark_is_refused(tmp_path, kind):
    kind(tmp_path / ".lock")
    with pytest.raises(SllmError, match=r"\.lock is not a file"), work_folder(tmp_path):
        pytest.fail("not reached")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", Path("/proc")):
        with pytest.raises(SllmError, match="could not be written"), work_folder(path):
            pytest.fail("not reached")


def test_without_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    def no_locks(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("sllm_jax.common.unfinished.FileLock.acquire", no_locks)
    with work_folder(tmp_path / "one"), work_folder(tmp_path / "one"):
        assert (tmp_path / "one").is_dir()
    assert not (tmp_path / "one").exists()
