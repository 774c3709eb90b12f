"""The GPU script: a dry run on a CPU, failing steps, time limits, and the parser of compiled programs."""

import importlib
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import ROOT
from test_compiled import decode_arguments

from sllm_jax.core.decode import decode_program
from sllm_jax.core.model import Model

FOLDER = ROOT / "tests/gpu"
SCRIPT = FOLDER / "run.sh"
LIMITS = dict(re.findall(r"(\w+)=(\d+)", re.search(r"^limits=\((.*?)\)", SCRIPT.read_text(), re.M | re.S)[1]))
HELPERS = {"step", "summary", "random_models", "small_models", "program_text"}
STUB = """#!/bin/sh
case "$1" in
  -c | -m) exit {installed} ;;
  */broken.py) echo "a broken step" ; exit 139 ;;
  */slow.py) exec sleep 60 ;;
  */imports.py) exec {python} -P -c 'import sllm_jax.convert; print(sllm_jax.convert.__file__)' ;;
  */summary.py) exec {python} "$@" ;;
esac
"""
GPU_PROGRAM = """HloModule jit_decode, is_scheduled=true

%fused (param_0: bf16[8]) -> bf16[8] {
  %param_0 = bf16[8]{0} parameter(0)
  ROOT %add.1 = bf16[8]{0} add(%param_0, %param_0), metadata={op_name="jit(decode)/while/body/layers_0/mlp/add"}
}

%command_buffer (p: bf16[8]) -> bf16[8] {
  %p = bf16[8]{0} parameter(0)
  %gemm = (bf16[8]{0}, s8[64]{0}) custom-call(%p), custom_call_target="__cublas$gemm", metadata={op_name="a/qkv/dot"}
  %out = bf16[8]{0} get-tuple-element(%gemm), index=0
  ROOT %fusion.1 = bf16[8]{0} fusion(%out), kind=kLoop, calls=%fused
}

%body (state: (s32[], bf16[8], /*index=2*/f32[2,3])) -> (s32[], bf16[8], /*index=2*/f32[2,3]) {
  %state = (s32[], bf16[8]{0}, /*index=2*/f32[2,3]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[8]{0} get-tuple-element(%state), index=1
  %y = f32[2,3]{1,0} get-tuple-element(%state), index=2
  %call = bf16[8]{0} call(%x), to_apply=%command_buffer
  %copy-start = (bf16[8]{0}, bf16[8]{0}, u32[]) copy-start(%call)
  %copy-done = bf16[8]{0} copy-done(%copy-start)
  ROOT %tuple = (s32[], bf16[8]{0}, f32[2,3]{1,0}) tuple(%i, %copy-done, %y)
}

ENTRY %main (x: bf16[8]) -> bf16[8] {
  %x.1 = bf16[8]{0} parameter(0)
  %while = (s32[], bf16[8]{0}, /*index=2*/f32[2,3]{1,0}) while(%x.1), condition=%body, body=%body
  ROOT %r = bf16[8]{0} get-tuple-element(%while), index=1
}
"""


@pytest.fixture
def script(monkeypatch):
    """A module of the script by its name."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in {*sys.modules} - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def stubbed(tmp_path):
    """Run the script with an interpreter that only pretends: the process, and the folder of what it found."""

    def run(*arguments, installed=0):
        stub = tmp_path / "python"
        stub.write_text(STUB.format(installed=installed, python=sys.executable))
        stub.chmod(0o755)
        return run_script(tmp_path, *arguments, PYTHON=str(stub)), tmp_path / "out"

    return run


def run_script(folder, *arguments, **environment):
    command = ["bash", str(SCRIPT), "out", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def test_a_dry_run_goes_through_every_step(tmp_path):
    without_optimizing = "--xla_backend_optimization_level=0"  # compiled in half the time
    steps = [f"{step}=600" for step in LIMITS]
    done = run_script(tmp_path, "--tiny", *steps, PYTHON=sys.executable, XLA_FLAGS=without_optimizing)
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert [(row["step"], row["status"]) for row in found["steps"]] == [(step, "ok") for step in LIMITS]
    assert done.returncode == 0
    assert {*LIMITS} == {*found} - {"steps"}
    assert found["machine"]["missing"] == []
    assert found["agreement"]["off"] == []
    assert [row["streams"] for row in found["decode_7b"]["decode"]] == [1, 2]
    assert found["against_recompute"]["ratio"][0]["ratio_to_ours"] > 0
    assert "SLLM_JAX_TORCH_ON_CPU=1" in found["against_transformers"]["skipped"] or "not installed" in str(found)
    assert found["launches"]["kernels_per_layer"] > 1
    assert found["most_streams"]["most_streams"] == 3
    table = (tmp_path / "out/table.txt").read_text()
    assert done.stdout.endswith(table)
    assert len(table) < 8000
    assert all(f"## {step}: ok" in table for step in LIMITS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "decode_2_layers.txt",
        "decode_4_layers.txt",
        "log.txt",
        "results.json",
        "steps.txt",
        "table.txt",
    ]


def test_a_step_that_crashes_or_hangs_is_noted_and_the_rest_runs(stubbed):
    done, out = stubbed("slow=5", "broken=5", "machine=5")
    assert done.returncode == 1
    assert [row["status"] for row in json.loads((out / "results.json").read_text())["steps"]] == [
        "stopped after its time",
        "failed, exit code 139",
        "ok",
    ]
    assert "a broken step" in (out / "log.txt").read_text()
    assert re.findall(r"^## (.*)$", done.stdout, re.M)[1] == "broken: failed, exit code 139, 0 s"


def test_a_step_without_time_is_not_started(stubbed):
    done, _ = stubbed("machine=1", "ceilings=9")
    assert "## machine: not started, no time was left" in done.stdout
    assert "## ceilings: ok" in done.stdout


def test_where_nothing_can_be_installed_the_clone_is_imported_in_place(stubbed):
    done, out = stubbed("imports=30", installed=1)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^/.*/sllm_jax/convert/__init__.py$", (out / "log.txt").read_text(), re.M)
    assert str(ROOT) not in (out / "log.txt").read_text()


def test_without_a_folder_the_usage_is_printed(tmp_path):
    done = subprocess.run(["bash", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: bash tests/gpu/run.sh OUT" in done.stderr


def test_the_limits_are_at_most_eight_minutes_and_every_step_has_one():
    assert sum(map(int, LIMITS.values())) + 10 <= 480
    assert {*LIMITS} == {path.stem for path in FOLDER.glob("*.py")} - HELPERS


def test_the_table_is_short_however_much_was_found(script, tmp_path, monkeypatch, capsys):
    rows = [{"model": "m" * 50, "precision": "float32", "logits": i / 3, "error": "e" * 500} for i in range(300)]
    (tmp_path / "results.json").write_text(json.dumps({"agreement": {"cases": rows, "error": "x" * 9000}}))
    (tmp_path / "steps.txt").write_text("agreement\t3\tok\nmissing\t0\tfailed, exit code 2\n")
    monkeypatch.setattr(sys, "argv", ["summary.py", str(tmp_path)])
    script("summary").main()
    printed = capsys.readouterr().out
    assert 1000 < len(printed) < 8000
    assert printed.endswith("in results.json)\n")


def test_what_a_step_finds_is_written_at_once_and_its_failures_are_rows(script, tmp_path, capsys):
    step = script("step")
    (tmp_path / "results.json").write_text('{"others": 1}')
    record = step.Record(tmp_path, "mine")
    assert record.attempt("rows", {"n": 1}, lambda: {"found": 2.5})
    assert not record.attempt("rows", {"n": 2}, lambda: 1 / 0)
    record.note(total=3)
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "others": 1,
        "mine": {
            "rows": [{"n": 1, "found": 2.5}, {"n": 2, "error": "ZeroDivisionError: division by zero"}],
            "total": 3,
        },
    }
    assert record.failed
    assert "Traceback" in capsys.readouterr().err


def test_a_step_that_raises_ends_with_a_sentence_and_exit_code_1(script, tmp_path, monkeypatch):
    step = script("step")
    monkeypatch.setattr(sys, "argv", ["some_step.py", str(tmp_path / "new"), "--tiny"])
    with pytest.raises(SystemExit) as leaving:
        step.run(lambda record, tiny: record.note(tiny=tiny) or [][0])
    assert leaving.value.code == 1
    found = json.loads((tmp_path / "new/results.json").read_text())
    assert found == {"some_step": {"tiny": True, "error": "IndexError: list index out of range"}}


def test_another_model_on_the_device_is_off(script, monkeypatch):
    """The device's weights are made wrong by a hundredth; the CPU's, which come second, are not."""
    agreement, made = script("agreement"), []

    def on_device(model, device):
        made.append(device)
        wrong = jax.tree.map(lambda leaf: leaf * 1.01, model.params) if len(made) == 1 else model.params
        return Model(model.module, wrong, model.hf_config)

    monkeypatch.setattr(agreement, "on_device", on_device)
    sizes = agreement.Sizes(recent_size=11, read=20, written=2, layers=1)
    assert {"logits", "streams"} <= {*agreement.compare("random llama", "float32", sizes)["off"].split(", ")}


class Written:
    """One side of a comparison of texts: always these tokens and logits."""

    def __init__(self, ids, logits):
        self.sizes, self.ids = SimpleNamespace(written=len(ids)), np.array(ids)
        self.carry = SimpleNamespace(logits=np.array(logits), key=jax.random.key(0))

    def write(self, options, limit=None):
        return self.carry, self.ids


@pytest.mark.parametrize(
    ("logits", "explained"),
    [([1.0, 1.0 + 1e-6, 0.0], True), ([1.0, 1.1, 0.0], False), ([1.06, 1.1, 0.0], True)],
)
def test_another_token_is_explained_only_by_scores_as_near_as_rounding_goes(script, logits, explained):
    """The device chose token 0 where the CPU, whose logits are [1, 1.1, 0] or nearly so, chose token 1."""
    here, there = Written([2, 0], logits), Written([2, 1], [1.0, logits[1], 0.0])
    found = script("agreement").texts(here, there)
    assert (found["greedy_same"], found["greedy_explained"]) == (1, explained)


def test_an_infinite_or_absent_number_is_no_agreement(script):
    difference = script("agreement").difference
    assert difference([1.0, np.nan], [1.0, 2.0]) == np.inf
    assert difference([3.0, 4.0], [3.0, 4.0]) == 0
    assert difference([3.0, 4.5], [3.0, 4.0]) == pytest.approx(0.1)


def test_the_kernels_of_a_gpu_program_by_hand(script):
    assert script("program_text").kernel_figures(GPU_PROGRAM) == {
        "kernels": 3,
        "command_buffers": 1,
        "by_part": {"qkv": 1, "mlp": 1, "other": 1},
        "by_kind": {"custom-call __cublas$gemm": 1, "fusion kLoop": 1, "copy-start": 1},
    }


def test_the_kernels_of_a_real_program_are_in_the_loop_over_steps(script):
    text = decode_program.lower(*decode_arguments(jnp.float32), steps=8).compile().as_text()
    found = script("program_text").kernel_figures(text)
    assert found["kernels"] == found["by_part"].total() == found["by_kind"].total() > 20
    assert {"attention", "mlp", "head"} <= {*found["by_part"]}
