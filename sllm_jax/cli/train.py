"""`train`: a model from text."""

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
    """The settings of a run, named as in `sllm_jax.train.settings.TrainingSettings`."""

    steps: Annotated[int, Option(help="Steps in all.", rich_help_panel=LEARNING)] = 1000
    batch_size: Annotated[int, Option(help="Samples a step, of one context each.", rich_help_panel=LEARNING)] = 16
    sink: Annotated[
        str,
        Option(
            help="none: ordinary. zero: a logit fixed at 0 in every softmax (softmax-off-by-one). "
            "learnable: a token of its own before every sample (paper, section 3.3).",
            rich_help_panel=LEARNING,
        ),
    ] = "none"
    learning_rate: Annotated[float, Option(help="At its highest.", rich_help_panel=LEARNING)] = 3e-3
    final_learning_rate: Annotated[float, Option(help="At the end of the cosine.", rich_help_panel=LEARNING)] = 0.0
    warmup_steps: Annotated[int, Option(help="Steps of rising learning rate.", rich_help_panel=LEARNING)] = 100
    weight_decay: Annotated[float, Option(help="AdamW's, of matrices.", rich_help_panel=LEARNING)] = 0.1
    clip_norm: Annotated[float, Option(help="Longest gradient.", rich_help_panel=LEARNING)] = 1.0
    hold_back: Annotated[
        int,
        Option(
            help="Whole documents kept for evaluation, taken evenly from the texts; of a single one its last tenth.",
            rich_help_panel=LEARNING,
        ),
    ] = 1
    seed: Annotated[
        int, Option(help="Of parameters and order; the same seed, the same model.", rich_help_panel=LEARNING)
    ] = 0
    dtype: Annotated[
        str,
        Option(help="float32 or bfloat16, of the computation; parameters stay float32.", rich_help_panel=COMPUTING),
    ] = "float32"
    accumulate: Annotated[
        int, Option(help="Parts a batch is computed in, to save memory.", rich_help_panel=COMPUTING)
    ] = 1
    remat: Annotated[
        bool,
        Option("--remat", help="Compute layers again in the backward pass, to save memory.", rich_help_panel=COMPUTING),
    ] = False


@expand_groups
def train(
    texts: Annotated[
        list[Path],
        Argument(help="Text files, UTF-8 (.xz as well); a form feed stands between documents.", metavar="TEXT"),
    ],
    *,
    config: Annotated[
        Path,
        Option(
            help="config.json of a supported family, with the context (max_position_embeddings, for MPT max_seq_len)."
        ),
    ],
    out: Annotated[Path, Option(help="The folder of the run; the model will be in OUT/model.", metavar="OUT")],
    resume: Annotated[bool, Option("--resume", help="Go on with the run in OUT, from its last checkpoint.")] = False,
    training: TrainingGroup,
    save_every: Annotated[int, Option(help="Steps between evaluations and checkpoints.", rich_help_panel=RUN)] = 200,
    plot_format: Annotated[
        str, Option("--format", help="Of the plot of the loss: png, svg or pdf.", rich_help_panel=RUN)
    ] = "png",
) -> None:
    """Train a model and its tokenizer on text; needs the extra `train`.

    OUT gets checkpoints, metrics.csv, loss.png (if matplotlib is installed), held_back.txt and at the end OUT/model,
    which --model takes and `sllm-jax convert --to huggingface` exports. Ctrl-C and SIGTERM save and stop; --resume
    goes on exactly.
    """
    from sllm_jax.common.files import load_json, work_folder
    from sllm_jax.common.inputs import is_there
    from sllm_jax.common.plot import can_plot, check_format, no_plots

    _require_extra()
    check_format(plot_format)
    from sllm_jax.train.preparation import check_same, prepare
    from sllm_jax.train.run import METRICS, MODEL, TrainingRun
    from sllm_jax.train.settings import TrainingSettings

    out = Path(os.path.expanduser(out))  # which the shell leaves undone in --out=~/run
    settings = TrainingSettings(config=load_json(config), **asdict(training))
    if save_every < 1:
        raise SllmError(f"save-every must be 1 or more; got {save_every}")
    if resume:
        check_same(out, texts, settings)
    else:
        if is_there(out):
            raise SllmError(f"{out} exists already; add --resume to go on with the run in it, or name a new folder")
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
                note(f"stopped after step {run.step} of {settings.steps}; --resume goes on")
                raise
    if not run.rows:
        note(f"{out / METRICS} has no measures; it was removed or emptied after the last step")
    for row in run.rows[-1:]:
        print(f"held back: {row.held_back_nll:.4f} nats per token, {row.held_back_bits_per_byte:.4f} bits per byte")
    note(f"wrote {out / MODEL}")


def _measures(rows: list[Row]) -> str:
    """The last measures, for the bar."""
    if not rows:
        return ""
    held = [f", held back {row.held_back_bits_per_byte:.3f} bits per byte" for row in rows if row.held_back_nll]
    return f", {rows[-1].tokens_per_second:.0f} tokens/s{held[-1] if held else ''}"


def _require_extra() -> None:
    missing = [name for name in ("optax", "tokenizers") if find_spec(name) is None]
    if missing:
        raise SllmError(f"training needs {', '.join(missing)}; {how_to_install('train')}")
