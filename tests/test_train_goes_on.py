"""Resumed training runs: no measure is lost, nothing is left over, and damage gives a clear error."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from training import CONFIG, done, prepared, write_text

from sllm_jax.common.errors import SllmError
from sllm_jax.train import run as runs
from sllm_jax.train.preparation import hf_config, prepare
from sllm_jax.train.run import TrainingRun
from sllm_jax.train.settings import TrainingSettings
from sllm_jax.train.text import read_documents


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run left alone."""
    folder = tmp_path_factory.mktemp("whole")
    return done(prepared(folder, steps=24, save_every=12))


def test_ctrl_c_between_two_rows_loses_no_measure(whole, run, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["train", write_text(tmp_path), "--config", tmp_path / "config.json", "--out=~/run", "--steps", 24]
    arguments += ["--batch-size", 4, "--warmup-steps", 2, "--learning-rate", 1e-2, "--save-every", 12]
    step, losses = runs.train_step, []

    def until_ctrl_c(*inputs):
        state, measured = step(*inputs)
        losses.append(float(measured["loss"]))
        if state.step == 13:
            signal.raise_signal(signal.SIGINT)
        return state, measured

    monkeypatch.setattr(runs, "train_step", until_ctrl_c)
    assert run(*arguments) == (130, "", "stopped after step 13 of 24; --resume continues\n")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["00000013"]

    code, out, err = run(*arguments, "--resume")
    assert (code, out.count("\n"), err) == (0, 1, "wrote " + str(tmp_path / "run/model") + "\n")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["00000024"]
    resumed = TrainingRun(tmp_path / "run", whole.settings)
    for one, other in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = {row.step: row for row in resumed.rows}
    assert list(rows) == [10, 12, 13, 20, 24]
    for first, last in ((1, 10), (11, 12), (13, 13), (14, 20), (21, 24)):
        np.testing.assert_allclose(rows[last].loss, np.mean(losses[first - 1 : last]), rtol=1e-6)
    for row in whole.rows:
        assert rows[row.step].held_back_nll == row.held_back_nll
    assert out == (
        f"held back: {whole.rows[-1].held_back_nll:.4f} nats per token, "
        f"{whole.rows[-1].held_back_bits_per_byte:.4f} bits per byte\n"
    )


PREPARED = ["learned.npy", "held_back.npy", "held_back.txt", "tokenizer/tokenizer.json"]


def copied(whole, tmp_path):
    return shutil.copytree(whole.folder, tmp_path / "run")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "other": lambda path: path.write_bytes(b"nothing that it should be"),
    "gone": Path.unlink,
    "a bit": flip_a_bit,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "a pipe": lambda path: path.unlink() or os.mkfifo(path),
    "a folder": lambda path: path.unlink() or path.mkdir(),
}


@pytest.mark.parametrize("name", [*PREPARED, "checkpoints/00000024/params/manifest.ocdbt"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_one_sentence(whole, tmp_path, name, damage):
    DAMAGE[damage](copied(whole, tmp_path) / name)
    with pytest.raises(SllmError, match=r"damaged or belongs to another run|missing or damaged") as error:
        TrainingRun(tmp_path / "run", whole.settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("files", [None, 5, {}, {"learned.npy": "0"}])
def test_settings_without_digests_are_refused(whole, tmp_path, files):
    path = copied(whole, tmp_path) / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files}))
    with pytest.raises(
        SllmError, match=r"settings\.json is damaged or from an earlier version: it has no digests; start"
    ):
        TrainingRun(tmp_path / "run", whole.settings)


def test_measures_of_another_checkpoint_are_refused(whole, tmp_path):
    path = copied(whole, tmp_path) / "metrics.csv"
    path.write_text(path.read_text().replace(f"{whole.rows[-1].held_back_nll}", "0.5"))
    with pytest.raises(SllmError, match=r"metrics\.csv is damaged: .*; remove it to continue without"):
        TrainingRun(tmp_path / "run", whole.settings)
    path.unlink()
    assert TrainingRun(tmp_path / "run", whole.settings).rows == []


def test_a_run_that_lost_its_measures_goes_on_and_keeps_the_new_ones(tmp_path):
    run = prepared(tmp_path)
    for step, _ in run.steps():
        if step == 5:
            break
    (run.folder / "metrics.csv").unlink()
    TrainingRun(run.folder, run.settings, run.save_every).save()  # Ctrl-C before the next step
    done(TrainingRun(run.folder, run.settings, run.save_every))
    assert [row.step for row in TrainingRun(run.folder, run.settings).rows] == [10, 12]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "text.txt").write_text("the cat\fa mat", encoding="utf-8-sig")
    assert read_documents([tmp_path / "text.txt"]) == ["the cat", "a mat"]


def test_a_model_trained_from_a_bfloat16_config_is_said_to_be_float32():
    config = hf_config(TrainingSettings(config=CONFIG | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    assert {name: value for name, value in config.items() if "dtype" in name} == {"torch_dtype": "float32"}


def test_a_failed_preparation_leaves_nothing(tmp_path, whole):
    text = write_text(tmp_path, words=4)
    with pytest.raises(SllmError, match="the text is too small"):
        prepare(tmp_path / "run", [text], whole.settings)
    assert list(tmp_path.iterdir()) == [text]
