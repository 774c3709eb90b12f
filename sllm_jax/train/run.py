"""A training run: resumable steps, evaluations and checkpoints, and the trained model at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from sllm_jax.common import checkpoint, orbax
from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import new_folder, write_json
from sllm_jax.common.inputs import is_there
from sllm_jax.common.plot import can_plot
from sllm_jax.common.unfinished import remove_abandoned
from sllm_jax.convert.families import module_for
from sllm_jax.core.model import Model
from sllm_jax.evaluate.perplexity import bits_per_byte
from sllm_jax.text.tokenizer import load_tokenizer
from sllm_jax.train import metrics
from sllm_jax.train.bpe import SINK_TOKEN, save_tokenizer
from sllm_jax.train.metrics import Row
from sllm_jax.train.packing import Samples
from sllm_jax.train.preparation import HELD_BACK, HELD_BACK_TEXT, LEARNED, TOKENIZER, check_files, hf_config, text_names
from sllm_jax.train.settings import TrainingSettings
from sllm_jax.train.step import eval_step, init_train_state, learning_rate, optimizer, train_step

CHECKPOINTS, METRICS, PLOT, MODEL = "checkpoints", "metrics.csv", "loss", "model"
ROW_EVERY = 10  # steps between rows of measures
# Sampling defaults of the trained model: small models repeat themselves when decoding greedily.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
EVALUATED = 256  # limit on the held-back samples of an evaluation


class TrainingRun:
    """A prepared training run. `steps` does the work; `state` and `rows` hold the results so far."""

    def __init__(
        self, folder: Path, settings: TrainingSettings, save_every: int = 200, plot_format: str = "png"
    ) -> None:
        """Resume from the last checkpoint in `folder`, if any. Evaluate and save every `save_every` steps."""
        self.folder, self.settings, self.save_every, self.plot_format = folder, settings, save_every, plot_format
        remove_abandoned(folder)
        check_files(folder)
        self.module = module_for(hf_config(settings), settings.dtype).clone(remat=settings.remat)
        self.tokenizer = load_tokenizer(folder / TOKENIZER)
        sink_id = self.tokenizer.convert_tokens_to_ids(SINK_TOKEN) if settings.sink == "learnable" else None
        self._learned, self._held_back = (
            Samples(np.load(folder / name, mmap_mode="r"), settings.context, sink_id) for name in (LEARNED, HELD_BACK)
        )
        self._token_bytes = (folder / HELD_BACK_TEXT).stat().st_size / len(self._held_back.token_ids)
        begun = init_train_state(self.module, settings), metrics.digest([])
        self.state, measures = checkpoint.restore(folder / CHECKPOINTS, begun)
        self.rows = metrics.read_rows(folder / METRICS, self.step, np.asarray(measures))
        self._losses: list[float] = []  # losses since the last row
        self._gradient_norm = 0.0  # at the last step
        self._since = time.perf_counter()  # time of the last row

    @property
    def step(self) -> int:
        """The number of completed steps."""
        return int(self.state.step)

    def steps(self) -> Iterator[tuple[int, float]]:
        """Run the remaining steps, then write the model. Yields the number and the loss of each step."""
        chain, settings = optimizer(self.settings), self.settings
        self._since = time.perf_counter()
        while self.step < settings.steps:
            samples = self._learned.batch(settings.seed, self.step, settings.batch_size)
            self.state, measured = train_step(self.module, chain, self.state, samples, settings.accumulate)
            loss, self._gradient_norm = self._finite(float(measured["loss"])), float(measured["gradient_norm"])
            self._losses.append(loss)
            saves = self.step % self.save_every == 0 or self.step == settings.steps
            if saves or self.step % ROW_EVERY == 0:
                self._add_row(evaluates=saves)
            if saves:
                self.save()
            yield self.step, loss
        self._write_model()

    def held_back_nll(self) -> float:
        """Mean nll on held-back text in nats per token; every sample is read independently."""
        samples, size = self._held_back.evenly(EVALUATED), self.settings.batch_size // self.settings.accumulate
        parts = [samples[i : i + size] for i in range(0, len(samples), size)]
        # An incomplete last batch is dropped, so that one program is compiled.
        of_one_shape = [part for part in parts if len(part) == len(parts[0])]
        return float(np.mean([eval_step(Model(self.module, self.state.params), part) for part in of_one_shape]))

    def save(self) -> None:
        """Write the measures, a checkpoint and, with matplotlib, a plot. Raises `SllmError` on failure.

        The measures are written first; rows after the last checkpoint are dropped on resuming. Steps since the last row
        get a row, so that no measure is lost if the run stops between two rows.
        """
        if self._losses:
            self._add_row(evaluates=False)
        metrics.write_rows(self.folder / METRICS, self.rows)
        checkpoint.save(self.folder / CHECKPOINTS, self.step, (self.state, metrics.digest(self.rows)))
        if can_plot():
            title = ", ".join([Path(os.path.realpath(self.folder)).name, *text_names(self.folder)])
            metrics.plot_rows(self.folder / f"{PLOT}.{self.plot_format}", self.rows, title)

    def _finite(self, loss: float) -> float:
        if not np.isfinite(loss):
            raise SllmError(
                f"the loss is {loss} at step {self.step}; lower the learning rate, or use more warm-up steps"
            )
        return loss

    def _add_row(self, evaluates: bool) -> None:
        tokens = self.settings.batch_size * self.settings.context
        seconds = time.perf_counter() - self._since
        held_back = self._finite(self.held_back_nll()) if evaluates else None
        row = Row(
            step=self.step,
            tokens=self.step * tokens,
            loss=float(np.mean(self._losses)),
            gradient_norm=self._gradient_norm,
            learning_rate=float(learning_rate(self.settings)(self.step - 1)),
            tokens_per_second=len(self._losses) * tokens / seconds,
            held_back_nll=held_back,
            held_back_bits_per_byte=None if held_back is None else bits_per_byte(held_back, self._token_bytes),
        )
        self.rows.append(row)
        self._losses, self._since = [], time.perf_counter()

    def _write_model(self) -> None:
        """Write the trained model as a converted checkpoint."""
        if is_there(self.folder / MODEL):
            return
        token_ids = {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.tokenizer.eos_token_id}
        config = hf_config(self.settings, **token_ids)
        with new_folder(self.folder / MODEL) as folder:
            orbax.save(folder, jax.tree.map(np.asarray, self.state.params))
            write_json(folder / "config.json", config)
            write_json(folder / "generation_config.json", {**token_ids, **SAMPLING})
            save_tokenizer(self.tokenizer, folder)
