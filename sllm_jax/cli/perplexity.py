"""`perplexity`: how well a model predicts a text, with the cache it streams with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from sllm_jax.bundle import DEFAULT_MODEL
from sllm_jax.cli import options as o
from sllm_jax.cli.console import CtrlC, note, progress
from sllm_jax.errors import SllmError

if TYPE_CHECKING:
    import numpy as np


def perplexity(
    model: o.Model = DEFAULT_MODEL,
    text: Annotated[Path | None, Option(help="The text to predict, UTF-8.")] = None,
    tokens: Annotated[
        Path | None, Option(help="Integer token ids in a .npy file instead, used as they are; needs no tokenizer.")
    ] = None,
    mode: Annotated[
        str,
        Option(
            help="streaming: sinks and window. window: no sinks. dense: everything. recompute: a fresh forward pass "
            "over the last cache_size + 1 tokens for each token.",
            rich_help_panel=o.CACHE,
        ),
    ] = "streaming",
    start_size: o.StartSize = 4,
    recent_size: o.RecentSize = None,
    chunk_size: Annotated[int, Option(help="Tokens read at a time; never changes the result.")] = 256,
    max_tokens: Annotated[
        int | None, Option(help="Predict this many tokens at most.", show_default="the whole text")
    ] = None,
    nll_out: Annotated[
        Path | None, Option(help="Write -log p(token i+1 | tokens up to i), float32, to this .npy file.")
    ] = None,
    revision: o.Revision = None,
    tokenizer: o.Tokenizer = None,
    dtype: o.Dtype = None,
    seed: Annotated[int, Option(help="Accepted everywhere; nothing is random here.", hidden=True)] = 0,
) -> None:
    """Measure perplexity over a text of any length.

    The last line of standard output is `perplexity X over N tokens`; of a text standard error tells bits per byte.
    """
    if (text is None) == (tokens is None):
        raise SllmError("give either --text FILE or --tokens FILE.npy")
    if max_tokens is not None and max_tokens < 1:
        raise SllmError(f"max-tokens must be 1 or more; got {max_tokens}")
    import numpy as np

    from sllm_jax.files import new_file
    from sllm_jax.loading import load
    from sllm_jax.perplexity import bits_per_byte, check_token_ids, token_nll
    from sllm_jax.perplexity import perplexity as perplexity_of
    from sllm_jax.stream import fit_sizes
    from sllm_jax.tokenizer import decode

    token_ids = None if tokens is None else read_token_ids(tokens)
    content = None if text is None else read_text(text)
    with progress("loading") as bar:
        loaded, loaded_tokenizer = load(model, dtype, revision, tokenizer, bar)
    if token_ids is None:
        token_ids = _encode(loaded_tokenizer, content or "")
    token_ids = check_token_ids(token_ids, loaded.config.vocab_size)
    token_ids = token_ids[: None if max_tokens is None else max_tokens + 1]
    context = loaded.config.max_position_embeddings
    if mode == "dense":
        if len(token_ids) - 1 > context:
            note(f"dense attention over {len(token_ids) - 1} tokens goes past the trained context of {context}")
        start_size, recent_size = 0, context - 1
    start_size, recent_size = fit_sizes(loaded.config, 0 if mode == "window" else start_size, recent_size)
    pieces = token_nll(loaded, token_ids, mode, start_size, recent_size, chunk_size)
    with new_file(nll_out) if nll_out else nullcontext() as file:
        nll = _collect(pieces, len(token_ids) - 1)
        if file is not None:
            np.save(file, nll)
    if content is not None:
        token_bytes = len(decode(loaded_tokenizer, token_ids[1:]).encode()) / len(nll)
        note(f"{bits_per_byte(nll, token_bytes):.4f} bits per byte")
    print(f"perplexity {perplexity_of(nll):.6g} over {len(nll)} tokens")


def _collect(pieces: Iterator[np.ndarray], total: int) -> np.ndarray:
    """The pieces as one array, with a progress bar meanwhile."""
    import numpy as np

    nll, done, nats, begin = np.empty(total, np.float32), 0, 0.0, time.perf_counter()
    with progress("perplexity") as bar, CtrlC() as interrupt:
        for piece in pieces:
            nll[done : done + len(piece)] = piece
            done, nats = done + len(piece), nats + float(piece.sum(dtype=np.float64))
            rate = done / (time.perf_counter() - begin)
            bar(done, total, f"perplexity {np.exp(nats / done):.3f}, {rate:.0f} tokens/s")
            interrupt.check()
    return nll


def read_token_ids(path: Path) -> np.ndarray:
    """The array in a .npy file; raises `SllmError` if there is none. Pickled objects are refused."""
    import numpy as np

    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise SllmError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, EOFError) as error:
        raise SllmError(f"{path} is not a .npy file of numbers ({error}); write one with numpy.save") from error


def read_text(path: Path) -> str:
    """The text of a file; raises `SllmError` if it cannot be read, is not UTF-8, or is empty."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SllmError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SllmError(f"{path} is not UTF-8 text: {error}") from error
    if not content:
        raise SllmError(f"{path} is empty; give a text with something to predict")
    return content


def _encode(tokenizer: object, content: str) -> np.ndarray:
    from sllm_jax.tokenizer import encode

    if tokenizer is None:
        raise SllmError("--text needs a tokenizer, and this model has none beside it; name one (--tokenizer)")
    return encode(tokenizer, content, start=True)
