"""StreamEval: its stream by hand, the scoring, and readers whose answers are always or never correct."""

import re

import numpy as np
import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.reproduce import EXPERIMENTS, streameval
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions
from sllm_jax.reproduce.streameval import Answer, Question, accuracy, ask, events


def test_the_stream_is_that_of_the_papers_figure_8():
    values = np.random.default_rng(7).integers(10_000, 100_000, 31).tolist()
    stream = list(events(31, seed=7))
    assert stream[0] == "Below is a record of lines I want you to remember.\n"
    assert stream[1] == f"The REGISTER_CONTENT in line 0 is <{values[0]}>\n"
    questions = [event for event in stream if isinstance(event, Question)]
    assert questions == [Question(20, 20, values[0]), Question(30, 20, values[10])]
    assert questions[1].text == "Query: The REGISTER_CONTENT in line 10 is"
    assert stream.index(questions[0]) == 22  # right behind line 20
    assert len(stream) == 1 + 31 + 2


def test_every_distance_that_reaches_a_line_is_asked():
    asked = [(e.line, e.distance) for e in events(31, 0, every=15, distances=(5, 20, 30)) if isinstance(e, Question)]
    assert asked == [(15, 5), (30, 5), (30, 20), (30, 30)]


def test_one_seed_is_one_stream():
    assert list(events(40, 3)) == list(events(40, 3)) != list(events(40, 4))


@pytest.mark.parametrize(
    ("reply", "right"),
    [("12345>.", True), (" 12345", True), ("12346>", False), ("the 12345", True), ("1, 12345", False), ("", False)],
)
def test_the_first_number_counts(reply, right):
    assert Answer(Question(20, 20, 12345), reply).right is right


class Knowing:
    """Answers from all that it has read; `shift` makes every answer wrong."""

    def __init__(self, shift=0):
        self.text, self.shift, self.numbers = "", shift, 0

    def feed(self, text):
        self.text += text

    def generate(self, max_tokens, **options):
        line = re.search(r"in line (\d+) is$", self.text)[1]
        value = re.search(rf"The REGISTER_CONTENT in line {line} is <(\d+)>", self.text)[1]
        yield f" <{int(value) + self.shift}"
        yield ">."


@pytest.mark.parametrize(("reader", "expected"), [(Knowing(), 1.0), (Knowing(shift=1), 0.0)])
def test_who_knows_scores_all_and_who_does_not_nothing(reader, expected):
    answers = list(ask(reader, events(120, 0, distances=(20, 40))))
    assert len(answers) == 10 + 8
    assert accuracy(answers) == expected


def test_no_questions_have_no_accuracy():
    assert accuracy([]) is None


def test_the_report_counts_by_distance_and_by_length(loaded, monkeypatch):
    monkeypatch.setattr(streameval, "Stream", lambda *_: Reading())
    report = EXPERIMENTS["streameval"].run(ExperimentInputs(*loaded, "", ExperimentOptions(lines=200)))
    by_distance, by_length, _ = report.tables
    assert by_distance.rows == [(20, 18, 1.0), (40, 16, 1.0), (60, 14, 1.0), (80, 12, 1.0), (100, 10, 1.0)]
    assert [row[:2] for row in by_length.rows][:3] == [(20, 0), (40, 2), (60, 4)]
    assert by_length.rows[0][2] is None
    assert sum(row[1] for row in by_length.rows) == len(report.figures.rows) == 70


class Reading(Knowing):
    cache_size, tokens_seen = 127, 0


def test_a_model_reads_the_whole_stream(loaded):
    report = EXPERIMENTS["streameval"].run(ExperimentInputs(*loaded, "", ExperimentOptions(lines=22, recent_size=60)))
    assert [row[:2] for row in report.figures.rows] == [(20, 20)]
    assert report.settings["cache"] == "4 + 60 tokens kept"


def test_too_few_lines(loaded):
    with pytest.raises(SllmError, match="streameval needs more than 20 lines; got 20"):
        EXPERIMENTS["streameval"].run(ExperimentInputs(*loaded, "", ExperimentOptions(lines=20)))
