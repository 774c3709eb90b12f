"""The GPU, its driver, versions, and missing dependencies."""

import os
import platform
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from step import Record, run

QUERY = "name,memory.total,driver_version,power.limit,clocks.max.sm,clocks.max.mem,clocks.sm,clocks.mem,temperature.gpu"
OTHERS = ("jaxlib", "jax-cuda13-plugin", "optax", "matplotlib", "psutil", "tokenizers", "torch", "triton", "setuptools")


def measure(record: Record, tiny: bool) -> None:
    """What is known without our code comes first: it says why our code fails, if it does."""
    record.note(card=card(), python=platform.python_version(), kernel=platform.release(), processors=os.cpu_count())
    record.note(memory_gb=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)
    record.note(disk_free_gb=shutil.disk_usage("/tmp").free / 1e9)
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    needed = [requirement.partition(">=")[0] for requirement in pyproject["project"]["dependencies"]]
    found = {name: version_of(name) for name in (*needed, *OTHERS)}
    record.note(missing=[name for name in needed if found[name] is None], versions=found)
    record.note(environment={name: value for name, value in os.environ.items() if name.startswith(("XLA", "JAX"))})

    import jax

    import sllm_jax.convert

    device = jax.devices()[0]
    record.note(devices=[str(device) for device in jax.devices()], kind=f"{device.platform} ({device.device_kind})")
    record.note(sllm_jax=sllm_jax.__version__, memory=device.memory_stats())


def card() -> list[str] | str:
    """Each card in the words of its driver, by name."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return (done.stdout or done.stderr).strip().splitlines()


def version_of(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    run(measure)
