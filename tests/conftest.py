"""Shared fixtures: a small random model whose sizes all differ, and data folders."""

import io
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import pytest
from progress_lines import without_progress
from terminals import Terminal

from sllm_jax import cli
from sllm_jax.common.signals import STOPPING
from sllm_jax.convert.families import module_for
from sllm_jax.core.model import Model, init_params
from sllm_jax.loading.pretrained import load

# Compile each program once: this process keeps them on disk for its later test files and the processes that it starts.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    PROGRAMS = TemporaryDirectory(prefix="sllm-jax-test-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", PROGRAMS.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs so; what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup starts them so
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

SHARED = Path(__file__).resolve().parents[2] / "shared"

TINY = {
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rope_theta": 1000.0,
}


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget the compiled programs of a file at its end: thousands in one process use up its memory maps on Linux."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with checkpoints, golden answers and tokenizers that lies beside a developer's clone."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared material beside the clone, which is not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def tiny() -> Model:
    """A random Llama in float32. Its parameters are drawn wide, so that a wrong position shows in the logits."""
    module = module_for(TINY, jnp.float32)
    params = init_params(module)
    params = {
        name: {**layer, "self_attn": _scaled(layer["self_attn"], 2.0)} if name.startswith("layers") else layer
        for name, layer in params.items()
    }
    return Model(module, params, TINY)


def _scaled(attention: dict, by: float) -> dict:
    return {name: {"weight": leaf["weight"] * by} for name, leaf in attention.items()}


@pytest.fixture(scope="session")
def data() -> Path:
    """What the tests need from the repository itself."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def model(data) -> Path:
    """The folder of a small random Llama with a tokenizer and a trained context of 128 tokens."""
    return data / "tiny-llama"


@pytest.fixture(scope="module")
def loaded(model) -> tuple:
    """That model, and its tokenizer."""
    return load(model)


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a command in this process: (exit code, standard output, standard error), libraries in C++ included."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["sllm-jax", *map(str, arguments)])
        given = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        capfd.readouterr()
        before = {number: signal.getsignal(number) for number in STOPPING}
        try:
            with pytest.raises(SystemExit) as leaving:
                cli.main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        output = capfd.readouterr()
        return leaving.value.code or 0, output.out, without_progress(output.err)

    return run


@pytest.fixture
def terminal():
    """Starts a command on a terminal; ended with the test."""
    started = []

    def terminal(*arguments, **options):
        started.append(Terminal(*arguments, **options))
        return started[0]

    yield terminal
    started[0].process.kill()
    started[0].process.wait()
    os.close(started[0].controller)
