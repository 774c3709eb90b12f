"""`benchmark`: the speed of a model on this machine, compared with the memory bandwidth limit."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from sllm_jax.cli import options as o
from sllm_jax.cli.console import note, progress
from sllm_jax.cli.option_groups import expand_groups
from sllm_jax.common.errors import SllmError
from sllm_jax.loading.bundle import DEFAULT_MODEL

if TYPE_CHECKING:
    from sllm_jax.benchmark.run import BenchmarkSettings
    from sllm_jax.core.model import Model

_PANEL = "Measurements"


@dataclass(frozen=True)
class BenchmarkModel:
    """The model to measure: a checkpoint, or random weights of a config. It needs no tokenizer."""

    model: o.ModelName = DEFAULT_MODEL
    config: Annotated[
        Path | None,
        Option(help="Measure random weights of this config.json; needs no checkpoint.", rich_help_panel=o.MODEL),
    ] = None
    revision: o.Revision = None
    dtype: o.Dtype = None
    weights: o.Weights = None

    @property
    def name(self) -> str:
        """The name of the model in the results."""
        return str(self.config or self.model)

    def load(self, seed: int) -> Model:
        """Load the model, with a progress bar; `seed` is that of random weights. Raises `SllmError`."""
        if self.config is None:
            return o.ModelGroup(self.model, self.revision, dtype=self.dtype, weights=self.weights).load()[0]
        from sllm_jax.benchmark.random_weights import random_model
        from sllm_jax.common.files import load_json
        from sllm_jax.convert.dtypes import as_dtype
        from sllm_jax.loading.pretrained import default_dtype

        dtype = as_dtype(self.dtype or default_dtype())
        return random_model(load_json(self.config), dtype, bool(self.weights), seed)


@expand_groups
def benchmark(
    *,
    source: BenchmarkModel,
    cache: o.CacheSizes,
    streams: Annotated[
        list[int] | None,
        Option(help="Batch size (number of streams); repeatable.", show_default="1", rich_help_panel=_PANEL),
    ] = None,
    until_full: Annotated[
        bool, Option(help="Measure 1, 2, 4, ... streams until memory is full.", rich_help_panel=_PANEL)
    ] = False,
    rounds: Annotated[int, Option(help="Timed calls of each kind.", rich_help_panel=_PANEL)] = 7,
    against: Annotated[
        list[str] | None,
        Option(
            help="Also time this alternative, in alternation with ours. hf: PyTorch transformers on the same weights "
            "(static cache, compiled, as many keys). recompute: sliding window with re-computation. Repeatable; each "
            "one adds a line like `ratio hf/ours X`.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    out: Annotated[Path | None, Option(help="Write all results to this JSON file.")] = None,
    as_json: o.Json = False,
    profile: Annotated[
        Path | None,
        Option(help="Write a trace of decoding to this folder, for TensorBoard, XProf or ui.perfetto.dev."),
    ] = None,
    seed: Annotated[int, Option(help="Seed of random weights and tokens.")] = 0,
) -> None:
    """Measure speed, memory and start-up on this machine.

    Decoding is timed with a full cache. At best, a step reads every weight and every cached key and value once. The
    fractions compare its bandwidth with that of memory reads and copies, measured in alternation with it. On a CPU with
    separate channels for writing, reads are the limit.
    """
    if until_full and streams:
        raise SllmError("--streams and --until-full exclude each other; give one of them")
    import jax

    from sllm_jax.benchmark.against import check_against, compare
    from sllm_jax.benchmark.run import BenchmarkSettings, run_benchmark
    from sllm_jax.common.files import check_writable, made_folder, new_file
    from sllm_jax.core.int8 import check_weights, is_quantized
    from sllm_jax.streams.stream import fit_sizes

    check_against(against or ())
    check_weights(source.weights)
    cache.check()
    settings = BenchmarkSettings(
        cache.start_size, cache.recent_size or 0, None if until_full else streams or (1,), rounds, seed
    )
    if out:
        check_writable(out)
    if profile:
        made_folder(Path(os.path.expanduser(profile)))
    jax.config.update("jax_enable_compilation_cache", False)  # measure cold compilation
    begin = time.perf_counter()
    model = source.load(seed)
    load_seconds = time.perf_counter() - begin
    if "hf" in (against or ()) and is_quantized(model.params):
        raise SllmError("--against hf needs float weights; leave out --weights int8")
    start_size, recent_size = fit_sizes(model.config, cache.start_size, cache.recent_size)
    settings = replace(settings, start_size=start_size, recent_size=recent_size)
    with progress("measuring") as bar:
        results = run_benchmark(model, settings, load_seconds, bar)
    results = replace(results, about={"model": source.name, **results.about})
    found = results.as_json()
    if not as_json:
        print("\n\n".join(table.markdown() for table in results.tables()), flush=True)
    if profile:
        _profile(model, settings, profile)
    if against:
        note("compiling the comparisons")
        found["against"] = compare(model, settings, against)
    if out:
        with new_file(out) as file:
            file.write(json.dumps(found, indent=2).encode() + b"\n")
    if as_json:
        print(json.dumps(found))
        return
    for name, theirs in found.get("against", {}).items():
        print(f"\nours {theirs['ours_ms_per_step']:.4g} ms per token, {name} {theirs['their_ms_per_step']:.4g} ms")
        print(f"ratio {name}/ours {theirs['ratio_to_ours']:.3g}")


def _profile(model: Model, settings: BenchmarkSettings, folder: Path) -> None:
    """Write a profiler trace of one call."""
    import jax

    from sllm_jax.benchmark.programs import streaming_program

    program = streaming_program(model, settings.start_size, settings.recent_size, seed=settings.seed)
    state = jax.block_until_ready(program.call(program.start))
    with jax.profiler.trace(os.path.expanduser(folder), create_perfetto_trace=True):
        jax.block_until_ready(program.call(state))
    note(f"wrote a trace of {program.steps} tokens to {folder}")
