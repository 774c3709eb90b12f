"""Kernel launches of a step of a 7B Llama: in the compiled program, and in a profile of a call."""

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from decode_7b import STEPS
from program_text import kernel_figures
from random_models import config, settings, seven_b
from step import Record, run

from sllm_jax.benchmark.run import BenchmarkSettings
from sllm_jax.convert.families import module_for
from sllm_jax.core.decode import NO_TOKEN, Carry, decode_program, init_carry
from sllm_jax.core.model import Model, parameter_shapes
from sllm_jax.core.sampling import sampling

LAUNCH = ("cuLaunch", "cuGraphLaunch", "cudaLaunch", "cudaGraphLaunch")
LARGEST = 12


def measure(record: Record, tiny: bool) -> None:
    """Of one stream at 4 + 2044. Kernels of a layer: what two layers more add."""
    how, steps = settings(tiny), 8 if tiny else STEPS
    for int8 in (False, True):
        model, about = seven_b(tiny, int8), {"weights": "int8" if int8 else "bfloat16"}
        program, carry = compiled(model, how, steps)
        text = {**about, "layers": model.config.num_hidden_layers}
        record.attempt("text", text, partial(kernel_figures, program.as_text()))
        with tempfile.TemporaryDirectory() as folder:
            shown = partial(profile, program, model, carry, steps, Path(folder))
            record.attempt("profile", {**about, "steps": steps}, shown)
    for few in (2, 4):
        program, _ = compiled(shapes(few, tiny), how, steps)
        record.attempt("text", {"weights": "bfloat16", "layers": few}, partial(kernel_figures, program.as_text()))
        (record.path.parent / f"decode_{few}_layers.txt").write_text(program.as_text())
    by_layers = {row["layers"]: row.get("kernels") for row in record.found["text"]}
    if by_layers[2] and by_layers[4]:
        a_layer = (by_layers[4] - by_layers[2]) / 2
        record.note(kernels_per_layer=a_layer, kernels_outside_layers=by_layers[2] - 2 * a_layer)


def compiled(model: Model, how: BenchmarkSettings, steps: int) -> tuple[Any, Carry]:
    """The compiled `decode`, and the carry of an empty stream; parameters may be shapes."""
    carry = init_carry(model, how.start_size, how.recent_size)
    return decode_program.lower(model, carry, *rest(steps), steps=steps).compile(), carry


def rest(steps: int) -> tuple[Any, ...]:
    """The other arguments of `decode`: greedy, and nothing ends it."""
    return sampling(), np.array([NO_TOKEN], np.int32), np.int32(steps)


def shapes(layers: int, tiny: bool) -> Model:
    """The shapes of a model of so many layers, which are all that compiling it needs."""
    module = module_for(config(tiny, layers), "bfloat16")
    return Model(module, parameter_shapes(module))


def profile(program: Any, params: Any, carry: Carry, steps: int, folder: Path) -> dict[str, Any]:
    """Of the second call."""
    carry, _ = jax.block_until_ready(program(params, carry, *rest(steps)))
    with jax.profiler.trace(folder):
        jax.block_until_ready(program(params, carry, *rest(steps)))
    return profile_figures(folder, steps)


def profile_figures(folder: Path, steps: int) -> dict[str, Any]:
    """Of a step: kernels that ran on the device and the time they took, and launches by the host."""
    [path] = folder.rglob("*.xplane.pb")
    planes = {plane.name: plane for plane in jax.profiler.ProfileData.from_file(str(path)).planes}
    devices = [plane for name, plane in planes.items() if name.startswith("/device:GPU")]
    host = [plane for name, plane in planes.items() if not name.startswith("/device:")]
    found: dict[str, Any] = {"planes": {name: [line.name for line in planes[name].lines][:12] for name in planes}}
    launches = Counter(event.name for plane in host for line in plane.lines for event in line.events)
    found["launches_per_step"] = {n: count / steps for n, count in launches.items() if n.startswith(LAUNCH)}
    if not devices:
        return found | {"skipped": "the profile has no GPU"}
    events = [event for plane in devices for line in plane.lines if "Stream" in line.name for event in line.events]
    times: Counter = Counter()
    for event in events:
        times[event.name] += event.duration_ns
    counts = Counter(event.name for event in events)
    begin, end = min(event.start_ns for event in events), max(event.start_ns + event.duration_ns for event in events)
    return found | {
        "kernels_per_step": len(events) / steps,
        "busy_us_per_step": times.total() / 1e3 / steps,
        "us_per_step": (end - begin) / 1e3 / steps,
        "largest": [
            {"kernel": name[:80], "per_step": counts[name] / steps, "us_per_step": time / 1e3 / steps}
            for name, time in times.most_common(LARGEST)
        ],
    }


if __name__ == "__main__":
    run(measure)
