"""`demo`: three caches side by side; columns on a terminal, plain text elsewhere."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.live import Live
from typer import Option

from sllm_jax.cli import options as o
from sllm_jax.cli.columns import Columns, about_measure, fits
from sllm_jax.cli.console import note, progress
from sllm_jax.cli.generate import one_prompt
from sllm_jax.cli.option_groups import expand_groups
from sllm_jax.common.errors import SllmError
from sllm_jax.common.signals import STOPPED, before_leaving, deferred_signals, raise_stopped

if TYPE_CHECKING:
    from sllm_jax.core.sampling import SamplingOptions
    from sllm_jax.evaluate.side_by_side import Side, SideBySide

MODEL = "bundled:sink-learnable"
NEXT = "Next: `sllm-jax chat` for a conversation, `sllm-jax generate --ignore-eos` for text without end."
FRAME = 1 / 15  # seconds between two frames, at least
BELOW = 8  # rows for the explanation


@dataclass(frozen=True)
class DemoModel(o.ModelGroup):
    """The default is a model that needs its sink."""

    model: o.ModelName = MODEL


@dataclass(frozen=True)
class DemoCache(o.CacheSizes):
    """The default is a small cache, which is full soon."""

    recent_size: Annotated[
        int | None,
        Option(
            help="Window: number of most recent tokens kept besides the sinks.",
            show_default="a cache of half the trained context, at most 256 tokens",
            rich_help_panel=o.CACHE,
        ),
    ] = None


@expand_groups
def demo(
    text: o.PromptArgument = None,
    *,
    source: DemoModel,
    prompt: o.PromptOption = None,
    max_tokens: Annotated[int, Option(help="Number of new tokens of each text.")] = 2000,
    pace: Annotated[
        float, Option(help="Maximum number of tokens per second of each text on a terminal; 0: no limit.")
    ] = 40,
    as_json: o.Json = False,
    cache: DemoCache,
    sampling: o.SamplingGroup,
) -> None:
    """Show what attention sinks do, in one minute: three caches side by side.

    One model continues one prompt three times, with the same seed. EVERYTHING KEPT evicts nothing and goes past the
    trained context. WINDOW WITHOUT SINKS keeps the last START_SIZE + RECENT_SIZE tokens. STREAMING keeps the same
    number: the first START_SIZE and the last RECENT_SIZE. The texts are the same until the cache is full.

    The perplexity below each text shows how well its cache predicts the text of STREAMING, which all three read. Lower
    is better. (This favours STREAMING slightly; `sllm-jax perplexity` compares caches on your own text.)

    Ctrl-C stops it and keeps the last figures. Without a terminal, or if the terminal is too small, the texts are
    printed one after another.
    """
    from sllm_jax.evaluate.side_by_side import RUNNING, SideBySide
    from sllm_jax.streams.stream import check_end

    given = one_prompt(text, prompt)
    cache.check()
    check_end(max_tokens, ())
    if not 0 <= pace < math.inf:
        raise SllmError(f"pace must be 0 (no limit) or more; got {pace}")
    sampling.check()
    model, tokenizer = source.load()
    start = given or model.generation_config.get("opening")
    trio = SideBySide(model, tokenizer, start, max_tokens, **asdict(cache), seed=sampling.seed)
    console = Console()
    with deferred_signals(raise_stopped) as check:
        if as_json:
            about = {"model": source.model, "prompt": start, "seed": sampling.seed, "perplexity_tokens": RUNNING}
            _write(trio, sampling.chosen(), check, lambda: print(json.dumps(about | as_object(trio))))
        elif not (sys.stdout.isatty() and console.is_terminal) or console.is_dumb_terminal:
            _write(trio, sampling.chosen(), check, lambda: print_plainly(trio, RUNNING))
        elif not fits(*console.size):
            note("the terminal is too small for columns; the texts follow one after another")
            _write(trio, sampling.chosen(), check, lambda: print_plainly(trio, RUNNING))
        else:
            columns = Columns(trio, RUNNING, f"{source.model}, seed {sampling.seed}: {start or '(no prompt)'}")
            _show(trio, columns, console, sampling.chosen(), pace, check)


def _write(trio: SideBySide, options: SamplingOptions, check: Callable[..., None], tell: Callable[[], None]) -> None:
    """Write everything with a progress bar. `tell` is called at the end, also after an interruption."""
    try:
        with progress("writing") as bar:
            for written in trio.write(check, **options):
                bar(written, trio.max_tokens)
                check()
    finally:
        tell()


def _show(
    trio: SideBySide,
    columns: Columns,
    console: Console,
    options: SamplingOptions,
    pace: float,
    check: Callable[..., None],
) -> None:
    """Show the texts live. The last frame stays on the terminal, also after an interruption."""
    show_cursor_again = before_leaving(lambda: console.show_cursor(True))
    with _stopped_before_all():
        try:
            with Live(columns.frame(console, BELOW), console=console, auto_refresh=False) as live:
                try:
                    for _ in _paced(trio.write(check, **options), pace, check):
                        live.update(columns.frame(console, BELOW), refresh=True)
                finally:
                    live.update(columns.frame(console, BELOW), refresh=True)
        finally:
            show_cursor_again()
            console.print(f"\n{explanation(trio)}\n{NEXT}", highlight=False)


@contextmanager
def _stopped_before_all() -> Iterator[None]:
    """Prefer the exception of a signal to later write errors, which a closed terminal causes."""
    try:
        yield
    except OSError as error:
        cause = error.__context__
        while cause is not None and not isinstance(cause, STOPPED):
            cause = cause.__context__
        raise cause or error from None


def _paced(counts: Iterator[int], pace: float, check: Callable[..., None]) -> Iterator[int]:
    """Yield token counts, at most 1 / `FRAME` of them per second, and limit the speed to `pace` tokens per second."""
    begun, shown = None, -FRAME
    for written in counts:
        now = time.monotonic()
        begun = begun or now
        if now - shown > FRAME:
            shown = now
            yield written
        check()
        while pace and (left := begun + written / pace - time.monotonic()) > 0:
            time.sleep(min(left, FRAME))
            check()


def print_plainly(trio: SideBySide, running: int) -> None:
    """Print the texts one after another, each with a heading and its figures, then the explanation."""
    for side in trio.sides:
        print(f"== {side.title} ==\n{trio.prompt or ''}{side.text}\n\n{summary(side)}\n")
    print(f"{about_measure(running)}\n\n{explanation(trio)}\n{NEXT}")


def summary(side: Side) -> str:
    """One line: tokens written, speed, cache, tokens seen, perplexity."""
    stream, rate = side.stream, side.tokens_per_second
    return ", ".join(
        [
            f"{len(side.ids)} tokens",
            *([f"{rate:.1f} tokens/s"] if rate else []),
            f"cache {stream.cache_in_use} of {stream.cache_size} tokens",
            f"{stream.tokens_seen} tokens seen",
            *([f"perplexity {side.perplexity:.2f}"] if side.perplexity else []),
        ]
    )


def as_object(trio: SideBySide) -> dict[str, object]:
    """The fields of `--json`."""
    sides = [
        {
            "name": side.name,
            "text": side.text,
            "ids": side.ids,
            "tokens_per_second": side.tokens_per_second,
            "cache_in_use": side.stream.cache_in_use,
            "cache_size": side.stream.cache_size,
            "tokens_seen": side.stream.tokens_seen,
            "perplexity": side.perplexity,
        }
        for side in trio.sides
    ]
    return {"agreement": trio.agreement, "sides": sides}


def explanation(trio: SideBySide) -> str:
    """What the run showed, in three sentences."""
    kept, lost, own = (side.whole_perplexity for side in trio.sides)
    if not (kept and lost and own):
        return "Stopped before there was anything to compare."
    dense, window, streaming = trio.sides
    context = dense.stream.model.config.max_position_embeddings
    past = "went past" if dense.stream.tokens_seen > context else "stayed within"
    lacks = "lacks" if window.stream.tokens_seen > window.stream.cache_size else "still has"
    return (
        f'The first {trio.agreement:,} tokens of the three texts are the same. Then "everything kept" {past} the '
        f"{context:,} tokens of the trained context, and the window {lacks} the first tokens of the text: the "
        f"perplexity of the streaming text is {kept:.1f} with the former, {lost:.1f} with the latter, and {own:.1f} "
        f"with streaming. Streaming keeps the first {streaming.start_size} and the last {streaming.recent_size} "
        "tokens, and could continue without end, in the same memory and at the same speed."
    )
