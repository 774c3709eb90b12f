"""`train`: train a model on text."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sllm_jax.cli.console import note, progress
from sllm_jax.cli.option_groups import expand_groups
from sllm_jax.common.errors import SllmError
from sllm_jax.common.extras import how_to_install
from sllm_jax.common.signals import STOPPED, deferred_signals, raise_stopped

if TYPE_CHECKING:
    from sllm_jax.train.metrics import Row

RUN, LEARNING, COMPUTING = "Run", "Learning", "Computing"


@dataclass(frozen=True)
class TrainingGroup:
    """The settings of a training run, named as in `sllm_jax.train.settings.TrainingSettings`."""

    steps: Annotated[int, Option(help="Number of training steps.", rich_help_panel=LEARNING)] = 1000
    batch_size: Annotated[int, Option(help="Samples per step, one context each.", rich_help_panel=LEARNING)] = 16
    sink: Annotated[
        str,
        Option(
            help="none: ordinary training. zero: a logit fixed at 0 in every softmax (softmax-off-by-one). "
            "learnable: a dedicated token before every sample (paper, section 3.3).",
            rich_help_panel=LEARNING,
        ),
    ] = "none"
    learning_rate: Annotated[float, Option(help="Peak learning rate.", rich_help_panel=LEARNING)] = 3e-3
    final_learning_rate: Annotated[
        float, Option(help="Learning rate at the end of the cosine decay.", rich_help_panel=LEARNING)
    ] = 0.0
    warmup_steps: Annotated[int, Option(help="Steps of linear warm-up.", rich_help_panel=LEARNING)] = 100
    weight_decay: Annotated[
        float, Option(help="Weight decay of AdamW, applied to matrices only.", rich_help_panel=LEARNING)
    ] = 0.1
    clip_norm: Annotated[float, Option(help="Maximum global norm of the gradient.", rich_help_panel=LEARNING)] = 1.0
    hold_back: Annotated[
        int,
        Option(
            help="Number of documents held back for evaluation, evenly spaced; of a single document its last tenth.",
            rich_help_panel=LEARNING,
        ),
    ] = 1
    seed: Annotated[int, Option(help="Seed of initialization and sample order.", rich_help_panel=LEARNING)] = 0
    dtype: Annotated[
        str,
        Option(
            help="Dtype of the computation: float32 or bfloat16. Parameters stay float32.", rich_help_panel=COMPUTING
        ),
    ] = "float32"
    accumulate: Annotated[
        int, Option(help="Gradient accumulation: number of parts of a batch.", rich_help_panel=COMPUTING)
    ] = 1
    remat: Annotated[
        bool,
        Option("--remat", help="Recompute activations in the backward pass to save memory.", rich_help_panel=COMPUTING),
    ] = False


@expand_groups
def train(
    texts: Annotated[
        list[Path],
        Argument(help="UTF-8 text files, optionally .xz; form feeds separate documents.", metavar="TEXT"),
    ],
    *,
    config: Annotated[
        Path,
        Option(
            help="config.json of a supported family, including the context (max_position_embeddings; MPT: max_seq_len)."
        ),
    ],
    out: Annotated[Path, Option(help="The folder of the run; the trained model is OUT/model.", metavar="OUT")],
    resume: Annotated[bool, Option("--resume", help="Resume the run in OUT from its last checkpoint.")] = False,
    training: TrainingGroup,
    save_every: Annotated[int, Option(help="Steps between evaluations and checkpoints.", rich_help_panel=RUN)] = 200,
    plot_format: Annotated[
        str, Option("--format", help="Format of the loss plot: png, svg or pdf.", rich_help_panel=RUN)
    ] = "png",
) -> None:
    """Train a model and its tokenizer on text; needs the extra `train`.

    Writes checkpoints, metrics.csv, loss.png (if matplotlib is installed) and held_back.txt to OUT, and at the end the
    model to OUT/model. --model accepts it, and `sllm-jax convert --to huggingface` exports it. Ctrl-C and SIGTERM save
    and stop; a run resumed with --resume ends with bitwise equal parameters.
    """
    from sllm_jax.common.files import load_json, work_folder
    from sllm_jax.common.inputs import is_there
    from sllm_jax.common.plot import can_plot, check_format, no_plots

    _require_extra()
    check_format(plot_format)
    from sllm_jax.train.preparation import check_same, prepare
    from sllm_jax.train.run import METRICS, MODEL, TrainingRun
    from sllm_jax.train.settings import TrainingSettings

    out = Path(os.path.expanduser(out))  # the shell does not expand --out=~/run
    settings = TrainingSettings(config=load_json(config), **asdict(training))
    if save_every < 1:
        raise SllmError(f"save-every must be 1 or more; got {save_every}")
    if resume:
        check_same(out, texts, settings)
    else:
        if is_there(out):
            raise SllmError(f"{out} exists already; add --resume to continue the run in it, or name a new folder")
        with progress("reading") as bar:
            prepare(out, texts, settings, bar)
    if not can_plot():
        note(no_plots())
    with work_folder(out):
        run = TrainingRun(out, settings, save_every, plot_format)
        with progress("training") as bar:
            try:
                with deferred_signals(raise_stopped) as check:
                    for step, loss in run.steps():
                        bar(step, settings.steps, f"loss {loss:.3f}{_measures(run.rows)}")
                        check()
            except STOPPED:
                run.save()
                note(f"stopped after step {run.step} of {settings.steps}; --resume continues")
                raise
    if not run.rows:
        note(f"{out / METRICS} has no measures; it was removed or emptied after the last step")
    for row in run.rows[-1:]:
        print(f"held back: {row.held_back_nll:.4f} nats per token, {row.held_back_bits_per_byte:.4f} bits per byte")
    note(f"wrote {out / MODEL}")


def _measures(rows: list[Row]) -> str:
    """The last measures, for the progress bar."""
    if not rows:
        return ""
    held = [f", held back {row.held_back_bits_per_byte:.3f} bits per byte" for row in rows if row.held_back_nll]
    return f", {rows[-1].tokens_per_second:.0f} tokens/s{held[-1] if held else ''}"


def _require_extra() -> None:
    missing = [name for name in ("optax", "tokenizers") if find_spec(name) is None]
    if missing:
        raise SllmError(f"training needs {', '.join(missing)}; {how_to_install('train')}")
