"""Progress without a terminal: periodic lines, with a simulated clock."""

import pytest

from sllm_jax.cli.console import FIRST_LINE, NEXT_LINE, Bar, Lines, progress


class Clock:
    """Seconds, as they are set."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def log():
    """A clock, lines of progress that it drives, and what they have told."""
    clock, told = Clock(), []
    return clock, Lines("training", told.append, clock), told


def test_short_work_tells_nothing(log):
    clock, lines, told = log
    for done in range(100):
        clock.now += FIRST_LINE / 101
        lines(done, 100)
    assert told == []


def test_long_work_tells_a_line_now_and_then(log):
    clock, lines, told = log
    for done in range(240):  # one a second
        clock.now += 1
        lines(done + 1, 1000, "loss 3.1")
    assert len(told) == 1 + (240 - FIRST_LINE) // NEXT_LINE
    assert told[0] == "training: 10 of 1000 (1%), loss 3.1, 1/s, 0:16:30 left"
    assert told[-1].startswith("training: 220 of 1000 (22%), loss 3.1, 1/s, 0:13:00 left")


def test_what_was_done_before_counts_for_neither_rate_nor_time_left(log):
    clock, lines, told = log
    for done in range(900, 925):  # resumed; one in two seconds
        lines(done, 1000)
        clock.now += 2
    assert told[0] == "training: 905 of 1000 (90%), 0.5/s, 0:03:10 left"


@pytest.mark.parametrize(
    ("reports", "line"),
    [
        ([(5, 0), (9, 0)], "training: 9, 0.4/s"),
        ([(0, 0), (0, 0)], "training: 0"),
        ([(3, 4), (4, 4)], "training: 4 of 4 (100%), 0.1/s"),
        ([(3, 4), (3, 4)], "training: 3 of 4 (75%)"),
        ([(3, 4), (5, 4)], "training: 5 of 4 (125%), 0.2/s"),
    ],
    ids=["an unknown size", "nothing", "all", "no progress", "more than all"],
)
def test_what_is_not_known_is_left_out(log, reports, line):
    clock, lines, told = log
    for done, total in reports:
        lines(done, total)
        clock.now += 10
    lines(*reports[-1])
    assert told[0].split(", 0.")[0] == line.split(", 0.")[0]


def test_a_terminal_gets_a_bar_and_a_log_lines(monkeypatch):
    with progress("reading") as shown:
        assert isinstance(shown, Lines)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("reading") as shown:
        assert isinstance(shown, Bar)
