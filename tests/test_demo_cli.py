"""`demo` as people see it: on terminals of all sizes, in a pipe, stopped in the middle."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from terminals import code_when_it_closes
from test_cli import assert_refused

from sllm_jax.cli.columns import BARS, LEAST_ROWS, Columns, Wrapped, beside, fits, least_height, sparkline
from sllm_jax.cli.demo import NEXT, _paced, explanation
from sllm_jax.evaluate.side_by_side import RUNNING, SideBySide

TITLES = ["everything kept", "window without sinks", "streaming"]
FIGURES = re.compile(
    r"^(\d+) tokens, [\d.]+ tokens/s, cache (\d+) of (\d+) tokens, (\d+) tokens seen, perplexity ([\d.]+)$", re.M
)
SMALL = ("--recent-size", 20, "--start-size", 3, "--temperature", 1, "--seed", 3)


def demo(model, *arguments):
    return ("demo", "The cat", "--model", model, *SMALL, *arguments)


def test_in_a_pipe_the_texts_come_one_after_another(run, model):
    code, out, err = run(*demo(model, "--max-tokens", 60))
    assert (code, err) == (0, "")
    assert re.findall("^== (.*) ==$", out, re.M) == TITLES
    assert [found[:4] for found in FIGURES.findall(out)] == [
        ("60", "64", "64", "64"),
        ("60", "23", "23", "64"),
        ("60", "23", "23", "64"),
    ]
    assert "\x1b" not in out
    assert out.endswith(f"{NEXT}\n")


@pytest.mark.parametrize("given", [("The cat",), ("--prompt", "The cat"), ("-",)], ids=["argument", "option", "stdin"])
def test_streaming_writes_the_text_of_generate(run, model, given):
    same = ("--model", model, *SMALL, "--max-tokens", 50)
    text = run("generate", *given, *same, "--ignore-eos", stdin="The cat")[1]
    code, out, err = run("demo", *given, *same, "--json", stdin="The cat")
    assert (code, err) == (0, "")
    found = json.loads(out)
    streaming = found["sides"][-1]
    assert streaming["text"] + "\n" == text
    assert len(streaming["ids"]) == 50
    assert (found["prompt"], found["seed"], found["perplexity_tokens"]) == ("The cat", 3, RUNNING)
    assert [side["name"] for side in found["sides"]] == ["dense", "window", "streaming"]


def test_the_bundled_model_shows_that_it_needs_its_sink_and_its_trained_context(run):
    """Also in the text of the demo: words of more letters than English has, where everything is kept."""
    code, out, _ = run("demo", "--json", "--max-tokens", 600)
    dense, window, streaming = json.loads(out)["sides"]
    assert code == 0
    assert dense["perplexity"] > 3 * streaming["perplexity"]
    assert window["perplexity"] > 1.05 * streaming["perplexity"]
    assert streaming["cache_size"] == window["cache_size"] == 64
    longest = [max(map(len, re.findall("[a-z]+", side["text"]))) for side in (dense, streaming)]
    assert longest[0] > longest[1]


REFUSED = {
    "no sinks": (("--start-size", 0), "start_size must be 1 or more"),
    "a negative window": (("--recent-size", -1), "recent_size must be a non-negative integer; got -1"),
    "no tokens": (("--max-tokens", 0), "max-tokens must be 1 or more; got 0"),
    "too many tokens": (("--max-tokens", 10**9), "give a smaller max-tokens"),
    "a negative pace": (("--pace", -1), "pace must be 0 (no limit) or more; got -1"),
    "an endless pace": (("--pace", "inf"), "pace must be 0 (no limit) or more; got inf"),
    "two prompts": (("--prompt", "A dog"), "got both PROMPT and --prompt"),
    "a temperature below 0": (("--temperature", -1), "temperature must be 0 (greedy) or more; got -1"),
    "no model": (("--model", "./nowhere"), "folder ./nowhere not found"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_options_are_one_sentence(run, model, options, message):
    assert_refused(run(*demo(model, *options)), message)


def test_help_says_what_the_three_are(run):
    out = " ".join(run("demo", "--help")[1].replace("│", " ").split())
    for words in (
        "EVERYTHING KEPT",
        "WINDOW WITHOUT SINKS",
        "STREAMING",
        "Lower is better",
        "bundled:sink-learnable",
    ):
        assert words in out


def test_on_a_terminal_the_texts_are_columns_and_the_last_picture_stays(terminal, model):
    screen = terminal(*demo(model, "--max-tokens", 60, "--pace", 0))
    screen.expect("Preparing")
    screen.expect("64 tokens seen")
    screen.expect("Lower is better")
    screen.expect("at the same speed")
    assert screen.process.wait(timeout=60) == 0
    assert all(title in screen.passed for title in TITLES)
    assert re.search(r"cache 64 of 64 .*cache 23 of 23 .*cache 23 of 23", screen.passed)


def test_it_is_not_faster_than_its_pace(monkeypatch):
    """On a clock that only sleeping moves: no number before its tokens are due, and without a pace all at once."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    reached = [(count, clock[0] - 100) for count in _paced(iter(range(4, 400, 4)), 40, lambda: None)]
    assert [count for count, _ in reached] == [*range(4, 400, 4)]
    assert all(seconds == pytest.approx((count - 4) / 40) for count, seconds in reached)
    clock = [100.0]
    assert list(_paced(iter(range(4, 400, 4)), 0, lambda: None)) == [4]  # one picture: no time has passed
    assert clock == [100.0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_figures_on_the_terminal(terminal, model, number, code):
    screen = terminal(*demo(model, "--max-tokens", 50_000))
    screen.expect("60 tokens seen")
    screen.process.send_signal(number)
    screen.expect("tokens of the three texts are the same")
    screen.expect("text without end")
    assert screen.process.wait(timeout=60) == code
    assert "Traceback" not in screen.passed
    assert screen.passed.rfind("\x1b[?25h") > screen.passed.rfind("\x1b[?25l")  # the cursor is shown again


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_pipe_prints_what_was_written(model, number, code):
    command = [sys.executable, "-m", "sllm_jax", *map(str, demo(model, "--max-tokens", 50_000))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()  # a line of progress, after 10 s
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert re.findall("^== (.*) ==$", out, re.M) == TITLES
    assert len({found[0] for found in FIGURES.findall(out)}) <= 2  # the last block may be written by some


def test_a_terminal_that_closes_ends_it(model):
    assert code_when_it_closes("12 tokens seen", *demo(model, "--max-tokens", 50_000)) == 129


PLAIN = {
    "low": {"size": (10, 100)},
    "tiny": {"size": (1, 1)},
    "dumb": {"kind": "dumb"},
}


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_where_no_columns_fit_the_texts_come_one_after_another(terminal, model, options):
    screen = terminal(*demo(model, "--max-tokens", 60), **options)
    if "size" in options:
        screen.expect("the terminal is too small")
    screen.expect("== everything kept ==")
    screen.expect("== streaming ==")
    screen.expect("text without end")
    assert screen.process.wait(timeout=60) == 0
    assert "╭" not in screen.passed


def test_without_unicode_there_are_plain_borders_and_no_bars(terminal, model):
    screen = terminal(*demo(model, "--max-tokens", 60, "--pace", 0), PYTHONIOENCODING="ascii")
    screen.expect("text without end")
    assert screen.process.wait(timeout=60) == 0
    assert "+-" in screen.passed
    assert not set(BARS) & set(screen.passed)


@pytest.fixture(scope="module")
def trio(loaded):
    """A run that is done."""
    trio = SideBySide(*loaded, "The cat", 150, 3, 20)
    for _ in trio.write(temperature=1.0):
        pass
    return trio


SIZES = [(width, height) for width in (1, 39, 40, 71, 72, 80, 100, 101, 250) for height in (1, 13, 14, 25, 26, 30, 80)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_picture_fits_every_terminal(trio, width, height):
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    columns = Columns(trio, RUNNING, "A heading " * 20)
    lines = console.render_lines(columns.frame(console, 6))
    assert len(lines) <= height - 1 or not fits(width, height)
    assert all(sum(segment.cell_length for segment in line) <= width for line in lines)
    shown = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert ("perplexity" in shown) == fits(width, height)
    assert fits(width, height) == (width >= 40 and height >= least_height(width))
    if fits(width, height):
        inner = (width // 3 if beside(width) else width) - 4
        for side in trio.sides:
            assert f"perplexity {side.perplexity:.1f}" in shown
            assert all(line in shown for line in Wrapped().lines(side.text, inner, LEAST_ROWS))


@pytest.mark.parametrize("width", [20, 29])
@pytest.mark.parametrize(
    "text",
    ["the cat sat on the mat and looked " * 20, "a\n\n\nb  c\n" * 30, "word" * 200, "日本 🙂 é " * 40],
    ids=["words", "breaks", "one word", "wide"],
)
def test_a_text_that_grows_is_wrapped_as_a_whole_one(text, width):
    grown = Wrapped()
    for end in range(len(text) + 1):
        lines = grown.lines(text[:end], width, 5)
    assert lines == Wrapped().lines(text, width, 5)
    assert len(lines) == 5


def test_a_resized_terminal_wraps_anew():
    text, wrapped = "the cat sat on the mat " * 9, Wrapped()
    wrapped.lines(text, 30, 4)
    assert wrapped.lines(text + "again", 12, 4) == Wrapped().lines(text + "again", 12, 4)


def test_control_characters_do_not_move_the_cursor():
    assert Wrapped().lines("a\x1b[2Jb\tc\rd\x9be", 40, 1) == ["a\ufffd[2Jb c\ufffdd\ufffde"]


def test_bars_are_on_one_scale_and_end_with_the_last_value():
    assert sparkline([1, 10, 100], (1, 100), 8) == "▁▅█"
    assert sparkline([5, 5.00001], (5, 5.00001), 8) == "▁▁"  # rounding is not shown
    assert sparkline([1] * 99 + [100], (1, 100), 4) == "▁▁▁█"
    assert (sparkline([], (1, 1), 8), sparkline([3], (3, 3), 0), sparkline([3], (3, 3), -2)) == ("", "", "")


def test_what_was_seen_is_told_by_what_happened(loaded, trio):
    assert '"everything kept" went past the 128 tokens' in explanation(trio)
    assert "the window lacks the first tokens" in explanation(trio)
    assert f"The first {trio.agreement} tokens" in explanation(trio)
    short = SideBySide(*loaded, "The cat", 8, 3, 20)
    assert explanation(short) == "Stopped before there was anything to compare."
    for _ in short.write(temperature=1.0):
        pass
    assert '"everything kept" stayed within the 128 tokens' in explanation(short)
    assert "the window still has the first tokens" in explanation(short)
    assert "The first 8 tokens" in explanation(short)
