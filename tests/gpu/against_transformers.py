"""Speed-up over compiled PyTorch transformers with a static cache on the same weights, with alternating calls.

A quarter of the layers is measured first, in case all layers take too long to write, load and compile.
"""

import os
import shutil
import tempfile
from functools import partial
from importlib.util import find_spec

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # else JAX leaves PyTorch no memory

from random_models import settings, seven_b
from step import Record, run

from sllm_jax.benchmark.against import huggingface, ratio_figures
from sllm_jax.benchmark.programs import streaming_program
from sllm_jax.benchmark.run import BenchmarkSettings
from sllm_jax.core.model import Model

IN_MEMORY = "/dev/shm"


def measure(record: Record, tiny: bool) -> None:
    """One stream at 4 + 2044."""
    if find_spec("torch") is None:
        return record.note(skipped="PyTorch is not installed")
    if tiny and not os.environ.get("SLLM_JAX_TORCH_ON_CPU"):
        return record.note(skipped="PyTorch's compiler takes a minute of a CPU (SLLM_JAX_TORCH_ON_CPU=1 runs it)")
    if os.path.isdir(IN_MEMORY) and shutil.disk_usage(IN_MEMORY).free > 40e9:
        tempfile.tempdir = IN_MEMORY
    for layers in (1,) if tiny else (8, 32):
        record.attempt("ratio", {"layers": layers}, partial(ratio, seven_b(tiny, layers=layers), settings(tiny)))
    return None


def ratio(model: Model, how: BenchmarkSettings) -> dict[str, float]:
    """Both sides write from a full cache on."""
    ours = streaming_program(model, how.start_size, how.recent_size, steps=32)
    theirs = huggingface(model, how.start_size + how.recent_size, seed=0)
    return ratio_figures(ours, theirs, how.rounds) | {"their_compile_seconds": theirs.compile_seconds}


if __name__ == "__main__":
    run(measure)
