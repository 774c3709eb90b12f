"""Table 5: multiple-choice questions answered in one endless stream, compared with one stream per question.

The stream alternates questions and correct answers, as in the paper (section 4.3). Each answer has two scores. Exact
match: the greedy reply begins with the correct letter. Option log-likelihood: the correct letter is the most probable
option. In the few-shot format, every stream begins with the first question of the file as a worked example. In the chat
format, each question is a turn of the chat template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress
from sllm_jax.common.result_table import Table
from sllm_jax.core.decode import NO_TOKEN, Carry, decode, init_carry, prefill
from sllm_jax.core.model import check_finite
from sllm_jax.core.sampling import sampling
from sllm_jax.evaluate.perplexity import check_token_ids, option_nll
from sllm_jax.reproduce import paper
from sllm_jax.reproduce.arc import LABELS, ArcQuestion
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
from sllm_jax.reproduce.report import Report, Work
from sllm_jax.text.chat import render_answer, render_turn
from sllm_jax.text.tokenizer import decode_text, encode

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

REPLY_TOKENS = 8
_LETTER = re.compile(r"[\s\"'(<*]*([A-H])(?=[.):,*\]>\"'\n]|\s*$)")
_LAST = 8  # last token ids of the stream, which the next prompt depends on
_ROUND_UP = 8  # token counts of options are padded to a multiple, so that few programs are compiled
_ANSWER = "Answer:"


@dataclass(frozen=True)
class QAMode:
    """The cache sizes, and whether all questions share one stream."""

    name: str
    start_size: int
    recent_size: int
    one_stream: bool = True


@dataclass(frozen=True)
class Outcome:
    """The result of one question."""

    number: int  # index in its file, from 1
    question: ArcQuestion
    reply: str
    likeliest: int  # index of the most probable option

    @property
    def exact(self) -> bool:
        """Whether the reply begins with the correct letter."""
        found = _LETTER.match(self.reply)
        return found is not None and found[1] == self.question.labels[self.question.right]

    @property
    def likely(self) -> bool:
        """Whether the correct letter is the most probable one."""
        return self.likeliest == self.question.right


@dataclass(frozen=True)
class QAFormat:
    """Encodes questions and answers, in the few-shot format or as chat turns."""

    tokenizer: Any
    name: str

    @property
    def examples(self) -> int:
        """The number of worked examples at the beginning of every stream."""
        return 1 if self.name == "few-shot" else 0

    def prompt(self, question: ArcQuestion, last_ids: Sequence[int]) -> np.ndarray:
        """Token ids [N] up to where the answer begins; `last_ids` are the last of the stream, empty at its start."""
        options = "\n".join(f"{label}. {option}" for label, option in zip(LABELS, question.options, strict=False))
        text = f"{question.text}\n{options}"
        if self.name == "chat":
            text += "\nAnswer with the letter alone."
            return render_turn(self.tokenizer, text, None, not last_ids, last_ids)
        return encode(self.tokenizer, f"Question: {text}\n{_ANSWER}", start=not last_ids)

    def answer(self, label: str, closed: bool = False) -> np.ndarray:
        """Token ids [N] of an answer after its prompt; `closed` adds its end, unless the next prompt contains it."""
        if self.name == "chat":
            return render_answer(self.tokenizer, label)
        end = "\n\n" if closed else ""
        before, whole = (encode(self.tokenizer, text, start=False) for text in (_ANSWER, f"{_ANSWER} {label}{end}"))
        return whole[len(before) :]


def plan(inputs: ExperimentInputs) -> Work:
    """Check the inputs; the work asks the questions of each file in each mode."""
    options, (start_size, recent_size) = inputs.options, inputs.sizes
    form = QAFormat(inputs.tokenizer, options.qa_format)
    files = {name: questions[: options.max_questions] for name, questions in options.questions.items()}
    for name, questions in files.items():
        if len(questions) <= form.examples:
            raise SllmError(f"{name} needs {form.examples + 1} questions or more; got {len(questions)}")
        _check_tokens(inputs, form, questions)
    longest = max(_longest(form, questions) for questions in files.values())
    modes = [
        QAMode("one-shot", 0, longest, one_stream=False),
        QAMode(f"window 0 + {start_size + recent_size}", 0, start_size + recent_size),
        QAMode(f"streaming {start_size} + {recent_size}", start_size, recent_size),
    ]
    return partial(_run, inputs, form, files, modes)


def _run(
    inputs: ExperimentInputs,
    form: QAFormat,
    files: dict[str, Sequence[ArcQuestion]],
    modes: Sequence[QAMode],
    progress: Progress,
) -> Report:
    total = len(modes) * sum(len(questions) - form.examples for questions in files.values())
    found: dict[tuple[str, str], list[Outcome]] = {}
    done = 0
    for name, questions in files.items():
        for mode in modes:
            outcomes = []
            for outcome in ask(inputs, form, questions, mode):
                outcomes.append(outcome)
                done += 1
                progress(done, total)
            found[name, mode.name] = outcomes
    return Report(
        title="streamqa: multiple-choice questions in one endless stream",
        tables=[_accuracy_table(found, [*files], modes), paper.TABLE5],
        settings=inputs.settings()
        | {
            "questions": ", ".join(f"{name}: {len(questions) - form.examples}" for name, questions in files.items()),
            "format": form.name + (f", {form.examples} worked example first" if form.examples else ""),
            "one-shot": f"one stream per question, at most {modes[0].recent_size} tokens, nothing evicted",
            "on the stream": "questions and correct answers in alternation",
            "exact": f"% whose greedy reply ({REPLY_TOKENS} tokens) begins with the correct letter",
            "likely": "% whose correct letter is the most probable option",
            "chance": "% correct by guessing among the options",
            "paper": paper.SOURCE,
        },
        figures=_every_outcome(found),
        draw=lambda figure: _draw(figure, found, [*files], modes),
    )


def ask(inputs: ExperimentInputs, form: QAFormat, questions: Sequence[ArcQuestion], mode: QAMode) -> Iterator[Outcome]:
    """Ask all questions except the examples; yield their outcomes."""
    model = inputs.model
    carry = init_carry(model, mode.start_size, mode.recent_size)
    last: list[int] = []
    scored = _padded_options(form, max(len(question.options) for question in questions))

    for number, question in enumerate(questions, 1):
        prompt = form.prompt(question, last)
        asked = prefill(model, carry if mode.one_stream else carry.copy(), prompt)
        if number > form.examples:
            nll = np.asarray(option_nll(model, asked, *scored))[: len(question.options)]
            check_finite(model, nll, f"at question {number}")
            reply = _reply(inputs, asked.copy())
            yield Outcome(number, question, reply, int(nll.argmin()))
        if mode.one_stream or number <= form.examples:
            answer = form.answer(question.labels[question.right], closed=True)
            carry = prefill(model, asked, answer)
            last = [*last, *prompt.tolist(), *answer.tolist()][-_LAST:]


def _check_tokens(inputs: ExperimentInputs, form: QAFormat, questions: Sequence[ArcQuestion]) -> None:
    """Raises `SllmError` if an answer has no tokens, or a token id is outside the vocabulary."""
    answers = [form.answer(label) for label in LABELS]
    if not all(map(len, answers)):
        raise SllmError("streamqa needs a token for the letter of an answer, and the tokenizer has none after a prompt")
    later = [form.prompt(question, answers[0].tolist()) for question in questions]
    check_token_ids(np.concatenate([form.prompt(questions[0], []), *later, *answers]), inputs.model.config.vocab_size)


def _longest(form: QAFormat, questions: Sequence[ArcQuestion]) -> int:
    """The number of tokens of the longest stream with the examples, one question and a reply."""
    before: list[int] = []
    for example in questions[: form.examples]:
        answer = form.answer(example.labels[example.right], closed=True)
        before += [*form.prompt(example, before).tolist(), *answer.tolist()]
    longest = max(len(form.prompt(question, before)) for question in questions)
    return len(before) + longest + max(REPLY_TOKENS, _ROUND_UP)


def _reply(inputs: ExperimentInputs, carry: Carry) -> str:
    """The greedy reply."""
    _, ids = decode(inputs.model, carry, sampling(), [NO_TOKEN], REPLY_TOKENS, REPLY_TOKENS)
    return decode_text(inputs.tokenizer, np.asarray(ids))


def _padded_options(form: QAFormat, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The token ids of the answers [B, N], padded, and their lengths [B]."""
    ids = [form.answer(label) for label in LABELS[:count]]
    width = -(-max(map(len, ids)) // _ROUND_UP) * _ROUND_UP
    padded = np.stack([np.pad(one, (0, width - len(one))) for one in ids]).astype(np.int32)
    return padded, np.array([len(one) for one in ids], np.int32)


def _share(outcomes: Sequence[Outcome], score: str) -> float:
    return 100 * float(np.mean([getattr(outcome, score) for outcome in outcomes]))


def _accuracy_table(
    found: dict[tuple[str, str], list[Outcome]], files: Sequence[str], modes: Sequence[QAMode]
) -> Table:
    columns = ["mode", *(f"{name}, {score}" for name in files for score in ("exact", "likely"))]
    rows: list[list[str | float]] = [
        [mode.name, *(_share(found[name, mode.name], score) for name in files for score in ("exact", "likely"))]
        for mode in modes
    ]
    chance = [100 * float(np.mean([1 / len(o.question.options) for o in found[n, modes[0].name]])) for n in files]
    return Table(columns, [*rows, ["chance", *(value for value in chance for _ in range(2))]])


def _every_outcome(found: dict[tuple[str, str], list[Outcome]]) -> Table:
    columns = ("file", "mode", "question", "right", "reply", "likeliest", "exact", "likely")
    rows = [
        (file, mode, o.number, LABELS[o.question.right], o.reply, LABELS[o.likeliest], int(o.exact), int(o.likely))
        for (file, mode), outcomes in found.items()
        for o in outcomes
    ]
    return Table(columns, rows)


def _draw(
    figure: FigureBase, found: dict[tuple[str, str], list[Outcome]], files: Sequence[str], modes: Sequence[QAMode]
) -> None:
    """A panel per score, with a group of bars per file and a bar per mode."""
    panels = figure.subplots(1, 2, sharey=True)
    colours, hatches, width = ("#9FB8C8", "#E8743B", "#00487A"), ("", "//", ""), 0.8 / len(modes)
    for axes, score, title in zip(panels, ("exact", "likely"), ("Exact match", "Most probable letter"), strict=True):
        for i, mode in enumerate(modes):
            at = np.arange(len(files)) + (i - (len(modes) - 1) / 2) * width
            values = [_share(found[name, mode.name], score) for name in files]
            bars = axes.bar(at, values, width, label=mode.name, color=colours[i], hatch=hatches[i], edgecolor="white")
            axes.bar_label(bars, fmt="%.0f", fontsize=9)
        axes.set_xticks(range(len(files)), files)
        axes.set(title=title, ylim=(0, 108))
    panels[0].set(ylabel="Accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(modes), fontsize=10)
