"""`perplexity`: perplexity of texts of any length, with a streaming cache or one of its baselines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NamedTuple

from typer import Option

from sllm_jax.cli import options as o
from sllm_jax.cli import stdin
from sllm_jax.cli.console import note, progress
from sllm_jax.cli.option_groups import expand_groups
from sllm_jax.common.errors import SllmError
from sllm_jax.common.inputs import check_source, is_file
from sllm_jax.common.signals import STOPPED, deferred_signals, raise_stopped

if TYPE_CHECKING:
    import numpy as np

    from sllm_jax.evaluate.evaluation import Evaluation
    from sllm_jax.models.config import ModelConfig

SAVED_EVERY = 60  # seconds


@dataclass(frozen=True)
class PerplexityCache(o.CacheGroup):
    """The mode and cache sizes of an evaluation."""

    mode: Annotated[
        str,
        Option(
            help="streaming: keep sinks and window. window: no sinks. dense: keep everything. recompute: for each "
            "token a fresh forward pass over the last cache_size + 1 tokens, including the sink token of a model "
            "trained with one.",
            rich_help_panel=o.CACHE,
        ),
    ] = "streaming"

    def check(self) -> None:
        """Raises `SllmError` for an invalid mode or invalid sizes."""
        from sllm_jax.core.kv_state import check_sizes
        from sllm_jax.evaluate.perplexity import check_evaluation_mode

        check_evaluation_mode(self.mode)
        check_sizes(self.start_size, self.recent_size or 0)

    def sizes_for(self, config: ModelConfig) -> tuple[int, int]:
        """`start_size` and `recent_size` in this mode: `window` has no sinks, `dense` fills the trained context."""
        from sllm_jax.streams.stream import fit_sizes

        if self.mode == "dense":
            return fit_sizes(config, 0, config.max_position_embeddings - 1)
        return fit_sizes(config, 0 if self.mode == "window" else self.start_size, self.recent_size)


@expand_groups
def perplexity(
    *,
    source: o.ModelGroup,
    text: Annotated[
        list[Path] | None,
        Option(help='UTF-8 text file to evaluate; "-" reads standard input. Repeatable: texts are read in a batch.'),
    ] = None,
    tokens: Annotated[
        list[Path] | None,
        Option(help="Token ids in a .npy file, used unchanged; needs no tokenizer."),
    ] = None,
    cache: PerplexityCache,
    chunk_size: Annotated[int, Option(help="Tokens per chunk; does not change the result.")] = 256,
    max_tokens: Annotated[
        int | None, Option(help="Maximum number of tokens to predict in each text.", show_default="the whole text")
    ] = None,
    nll_out: Annotated[
        Path | None,
        Option(help="Write -log p(token i+1 | tokens up to i) of all texts in order, float32, to this .npy file."),
    ] = None,
    curve_out: Annotated[
        Path | None, Option(help="Write the running log perplexity along each text to this CSV file.")
    ] = None,
    resume: Annotated[
        Path | None,
        Option(
            help="Save checkpoints in this folder, every minute and on Ctrl-C or SIGTERM, and resume from them. One "
            "process at a time. The folder is removed at the end."
        ),
    ] = None,
    control_tokens: o.ControlTokens = False,
    as_json: o.Json = False,
    seed: Annotated[int, Option(help="Accepted for consistency; has no effect.", hidden=True)] = 0,
) -> None:
    """Measure perplexity over texts of any length, in constant memory (except in dense mode).

    The last line of standard output is `perplexity X over N tokens`. Bits per byte go to standard error.
    """
    if bool(text) == bool(tokens):
        raise SllmError("give either --text FILE or --tokens FILE.npy")
    if max_tokens is not None and max_tokens < 1:
        raise SllmError(f"max-tokens must be 1 or more; got {max_tokens}")
    from sllm_jax.common.files import check_writable, made_folder, new_file, scratch_folder, work_folder
    from sllm_jax.evaluate.evaluation import Evaluation, EvaluationSettings
    from sllm_jax.evaluate.perplexity import check_chunk_size

    cache.check()
    check_chunk_size(chunk_size)
    if resume is not None:
        _check_outside(resume, {"--nll-out": nll_out, "--curve-out": curve_out})
    outs = [out for out in (nll_out, curve_out) if out is not None]
    for out in outs:
        check_writable(out)
    if len({os.path.realpath(os.path.expanduser(out)) for out in outs}) < len(outs):
        raise SllmError(f"--nll-out and --curve-out are both {nll_out}; give two files")
    inputs = [_of_tokens(path, max_tokens) for path in tokens or ()]
    texts = [stdin.as_file(path) for path in text or ()]
    for path in texts:
        _check_text(path)
    with ExitStack() as work:
        kept = None if resume is None else work.enter_context(work_folder(resume))
        model, tokenizer = source.load()
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder())
            inputs += [_of_text(path, i, tokenizer, folder, max_tokens, control_tokens) for i, path in enumerate(texts)]
            how = EvaluationSettings(cache.mode, *cache.sizes_for(model.config), chunk_size)
            nll_file = stack.enter_context(new_file(nll_out)) if nll_out else None
            curve_file = stack.enter_context(new_file(curve_out)) if curve_out else None
            names = {"model": source.model, "revision": source.revision}
            place = kept or made_folder(folder / "evaluation")
            evaluation = Evaluation(place, model, [one.ids for one in inputs], how, names)
            _note_past_context(cache.mode, inputs, model.config.max_position_embeddings)
            _do(evaluation, saves=kept is not None)
            _write(evaluation, inputs, nll_file, curve_file)
        figures = [Figures.of(evaluation, i, one) for i, one in enumerate(inputs)]
        if as_json:
            print(json.dumps({"model": source.model, **total(figures), "texts": [one.as_json() for one in figures]}))
        else:
            _tell(evaluation, figures)
        if kept is not None:
            evaluation.remove()


def _check_outside(folder: Path, outs: Mapping[str, Path | None]) -> None:
    """Raises `SllmError` for an output file in the folder that is removed at the end."""
    for option, out in outs.items():
        if out is not None and out.expanduser().resolve().is_relative_to(folder.expanduser().resolve()):
            raise SllmError(
                f"{option} {out} is in the folder of --resume, which is removed at the end; name another place"
            )


class Input(NamedTuple):
    """An input: its file, token ids [T], and for a text the number of UTF-8 bytes that are predicted."""

    name: str
    ids: np.ndarray
    predicted_bytes: int | None


def _of_tokens(path: Path, max_tokens: int | None) -> Input:
    ids = read_token_ids(path)
    return Input(str(path), ids if max_tokens is None or ids.ndim != 1 else ids[: max_tokens + 1], None)


def read_token_ids(path: Path) -> np.ndarray:
    """The array in a .npy file, memory-mapped unless it is a pipe. Raises `SllmError` unless it is numeric."""
    from sllm_jax.common.npy import read_array

    return read_array(path, "write one with numpy.save")


def _check_text(path: Path) -> None:
    """Raises `SllmError` if the first block of a file is not text. A pipe is not checked: it can be read only once."""
    from sllm_jax.text.long_text import file_blocks

    if is_file(check_source(path)):
        next(file_blocks(path))


def _of_text(
    path: Path, number: int, tokenizer: Any, folder: Path, max_tokens: int | None, control_tokens: bool
) -> Input:
    from sllm_jax.text.long_text import tokenize_file

    if tokenizer is None:
        raise SllmError("--text needs a tokenizer, and this model has none; name one (--tokenizer)")
    limit = None if max_tokens is None else max_tokens + 1
    with progress("tokenizing") as bar, deferred_signals(raise_stopped) as check:

        def tell(done: int, total: int) -> None:
            bar(done, total)
            check()

        return Input(str(path), *tokenize_file(tokenizer, path, folder / f"{number}.ids", limit, tell, control_tokens))


def _note_past_context(mode: str, inputs: list[Input], context: int) -> None:
    longest = max(len(one.ids) for one in inputs) - 1
    if mode == "dense" and longest > context:
        note(f"dense attention over {longest} tokens exceeds the trained context of {context}")


def _do(evaluation: Evaluation, saves: bool) -> None:
    """Do the remaining work, with a progress bar. If `saves`, write a checkpoint every minute and on Ctrl-C."""
    import numpy as np

    before, begun = evaluation.done, time.perf_counter()
    saved = begun
    with progress("perplexity") as bar:
        try:
            with deferred_signals(raise_stopped) as check:
                for done, nats in evaluation.steps():
                    now = time.perf_counter()
                    rate = (done - before) / (now - begun)
                    bar(done, evaluation.total, f"perplexity {np.exp(nats / done):.3f}, {rate:.0f} tokens/s")
                    check()
                    if saves and now - saved > SAVED_EVERY:
                        evaluation.save()
                        saved = now
        except STOPPED:
            if saves:
                evaluation.save()
            raise


def _write(evaluation: Evaluation, inputs: list[Input], nll_file: BinaryIO | None, curve_file: BinaryIO | None) -> None:
    import numpy as np

    with deferred_signals(raise_stopped) as check:
        if nll_file:
            np.save(nll_file, evaluation.nll)
        check()
        if curve_file:
            evaluation.write_curve(curve_file, [one.name for one in inputs])
        check()


class Figures(NamedTuple):
    """The results of one input: mean nats per token, number of tokens, and for a text bits per byte."""

    name: str
    nats: float
    tokens: int
    bits_per_byte: float | None

    @classmethod
    def of(cls, evaluation: Evaluation, number: int, one: Input) -> Figures:
        """The results of input `number`."""
        from sllm_jax.evaluate.perplexity import bits_per_byte

        nats, count = float(evaluation.mean(number)), len(one.ids) - 1
        bits = float(bits_per_byte(nats, one.predicted_bytes / count)) if one.predicted_bytes else None
        return cls(one.name, nats, count, bits)

    def as_json(self) -> dict[str, object]:
        """The fields of `--json`."""
        return {"name": self.name, **total([self]), "bits_per_byte": self.bits_per_byte}


def total(figures: Sequence[Figures]) -> dict[str, float]:
    """Perplexity over the tokens of all texts."""
    import numpy as np

    tokens = sum(one.tokens for one in figures)
    nats = sum(one.nats * one.tokens for one in figures) / tokens
    return {"perplexity": float(np.exp(nats)), "nats_per_token": nats, "tokens": tokens}


def _tell(evaluation: Evaluation, figures: Sequence[Figures]) -> None:
    """Print the results of each text, if there are several, and of all together."""
    import numpy as np

    for one in figures:
        words = [] if len(figures) == 1 else [f"perplexity {np.exp(one.nats):.6g} over {one.tokens} tokens"]
        if one.bits_per_byte is not None:
            words.append(f"{one.bits_per_byte:.4f} bits per byte")
        if words:
            note(", ".join(words) if len(figures) == 1 else f"{one.name}: {', '.join(words)}")
    context = evaluation.model.config.max_position_embeddings
    if evaluation.settings.mode == "dense" and max(one.tokens for one in figures) > context:
        parts = [evaluation.nll_of(i) for i in range(len(figures))]
        within, past = (np.concatenate([part[cut] for part in parts]) for cut in (np.s_[:context], np.s_[context:]))
        note(
            f"within the trained context of {context} tokens: perplexity {np.exp(within.mean()):.6g}; "
            f"past it: {np.exp(past.mean()):.6g}"
        )
    whole = total(figures)
    print(f"perplexity {whole['perplexity']:.6g} over {whole['tokens']} tokens")
