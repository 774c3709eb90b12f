"""StreamEval (section 4.4, figure 8): each line states a value; every 10 lines a question asks for an earlier one.

The answer always lies a fixed number of lines back, so a model that sees only recent tokens can answer indefinitely.
Questions and answers stay in the stream. An answer is correct if its first number is the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Unpack, runtime_checkable

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress
from sllm_jax.common.result_table import Table
from sllm_jax.core.sampling import SamplingOptions
from sllm_jax.evaluate.perplexity import check_token_ids
from sllm_jax.reproduce import paper
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
from sllm_jax.reproduce.report import Report, Work
from sllm_jax.streams.stream import Stream
from sllm_jax.text.tokenizer import encode

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

BEGINNING = "Below is a record of lines I want you to remember.\n"
EVERY, DISTANCES = 10, (20, 40, 60, 80, 100)  # lines; the paper's distance is 20
LINES = 500
ANSWER_TOKENS = 12
STRETCHES = 10  # parts of the stream, for the accuracy by length


@dataclass(frozen=True)
class Question:
    """A question about the value in a line, asked `distance` lines later."""

    line: int  # the most recent line
    distance: int
    value: int

    @property
    def text(self) -> str:
        """The question as the model reads it."""
        return f"Query: The REGISTER_CONTENT in line {self.line - self.distance} is"


@dataclass(frozen=True)
class Answer:
    """The reply to a question."""

    question: Question
    reply: str

    @property
    def right(self) -> bool:
        """Whether the first number in the reply is the value."""
        found = re.search(r"\d+", self.reply)
        return found is not None and int(found[0]) == self.question.value


@runtime_checkable
class Reader(Protocol):
    """The interface under test: a `Stream` or a substitute."""

    def feed(self, text: str) -> Any:
        """Read a text."""

    def generate(
        self,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Generate text in pieces."""


def events(
    lines: int, seed: int, every: int = EVERY, distances: Sequence[int] = DISTANCES[:1]
) -> Iterator[str | Question]:
    """The stream: lines of text and, every `every` lines, a question for each distance that reaches a line."""
    values = np.random.default_rng(seed).integers(10_000, 100_000, lines)
    yield BEGINNING
    for line, value in enumerate(values.tolist()):
        yield f"The REGISTER_CONTENT in line {line} is <{value}>\n"
        if line and line % every == 0:
            for distance in distances:
                if distance <= line:
                    yield Question(line, distance, int(values[line - distance]))


def ask(reader: Reader, stream: Iterator[str | Question]) -> Iterator[Answer]:
    """Feed the whole stream to a reader; yield its answers."""
    for event in stream:
        if isinstance(event, str):
            reader.feed(event)
            continue
        reader.feed(event.text)
        reply = "".join(reader.generate(ANSWER_TOKENS, stop=("\n",), temperature=0.0, ignore_eos=True))
        reader.feed("\n")
        yield Answer(event, reply)


def accuracy(answers: Sequence[Answer]) -> float | None:
    """The share of correct answers; None if there are no answers."""
    return sum(answer.right for answer in answers) / len(answers) if answers else None


def plan(inputs: ExperimentInputs) -> Work:
    """Check the inputs; the work reads one stream, with a question for each distance at every tenth line."""
    lines = inputs.options.lines or LINES
    if lines <= DISTANCES[0]:
        raise SllmError(f"streameval needs more than {DISTANCES[0]} lines; got {lines}")
    if inputs.options.seed < 0:
        raise SllmError(f"seed must be 0 or more; got {inputs.options.seed}")
    example = "".join(event if isinstance(event, str) else event.text for event in events(EVERY + 1, 0, distances=(1,)))
    check_token_ids(encode(inputs.tokenizer, example, start=True), inputs.model.config.vocab_size)
    return partial(_run, inputs, lines, inputs.sizes)


def _run(inputs: ExperimentInputs, lines: int, sizes: tuple[int, int], progress: Progress) -> Report:
    options, stream = inputs.options, Stream(inputs.model, inputs.tokenizer, *sizes)
    answers = []
    for answer in ask(stream, events(lines, options.seed, distances=DISTANCES)):
        answers.append(answer)
        progress(answer.question.line, lines)
    return Report(
        title="streameval: questions about earlier lines of an endless stream",
        tables=[_by_distance(answers), _by_length(answers, lines), paper.TABLE7],
        settings=inputs.settings()
        | {
            "stream": f"{lines} lines, {stream.tokens_seen} tokens, seed {options.seed}",
            "cache": f"{options.start_size} + {stream.cache_size - options.start_size} tokens kept",
            "questions": f"every {EVERY} lines, one for each distance; greedy, at most {ANSWER_TOKENS} tokens",
            "paper": paper.SOURCE,
            "right": "the first number in the answer is the value",
        },
        figures=_every_answer(answers),
        draw=lambda figure: _draw(figure, answers, lines),
    )


def _by_distance(answers: Sequence[Answer]) -> Table:
    chosen = {d: [answer for answer in answers if answer.question.distance == d] for d in DISTANCES}
    rows = [(d, len(those), accuracy(those)) for d, those in chosen.items()]
    return Table(("lines back", "questions", "accuracy"), rows)


def _stretches(answers: Sequence[Answer], lines: int) -> dict[int, list[Answer]]:
    """The answers grouped by part of the stream, keyed by the last line of the part."""
    ends = [lines * (i + 1) // STRETCHES for i in range(STRETCHES)]
    starts = [0, *ends[:-1]]
    return {
        end: [answer for answer in answers if start <= answer.question.line < end]
        for start, end in zip(starts, ends, strict=True)
    }


def _by_length(answers: Sequence[Answer], lines: int) -> Table:
    rows = [(end, len(those), accuracy(those)) for end, those in _stretches(answers, lines).items()]
    return Table(("lines read, up to", "questions", "accuracy"), rows)


def _every_answer(answers: Sequence[Answer]) -> Table:
    columns = ("line", "lines_back", "value", "reply", "right")
    return Table(
        columns, [(a.question.line, a.question.distance, a.question.value, a.reply, int(a.right)) for a in answers]
    )


def _draw(figure: FigureBase, answers: Sequence[Answer], lines: int) -> None:
    """Two panels: accuracy by distance, and along the stream."""
    left, right = figure.subplots(1, 2, sharey=True)
    by_distance, by_length = _by_distance(answers).rows, _by_length(answers, lines).rows
    left.plot([row[0] for row in by_distance], [row[2] for row in by_distance], "o-", color="#00487A")
    left.set(xlabel="Lines back", ylabel="Accuracy", ylim=(-0.03, 1.03), xlim=(0, 1.05 * DISTANCES[-1]))
    right.plot([row[0] for row in by_length], [row[2] for row in by_length], "o-", color="#00487A")
    right.set(xlabel="Lines read", xlim=(0, 1.05 * lines))
