"""Questions in one stream: the prompts, both scores, and the differences between modes."""

import copy
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.core.decode import init_carry, prefill
from sllm_jax.core.model import dense_logits
from sllm_jax.reproduce import EXPERIMENTS, streamqa
from sllm_jax.reproduce.arc import ArcQuestion, read_files
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions
from sllm_jax.reproduce.streamqa import Outcome, QAFormat, QAMode, ask, option_nll
from sllm_jax.text.tokenizer import decode_text, encode

QUESTIONS = [ArcQuestion(f"What is {i}?", ("red", "blue", "a cat"), i % 3) for i in range(6)]


@pytest.fixture
def subject(loaded):
    return ExperimentInputs(*loaded, "", ExperimentOptions())


@pytest.fixture
def path(tmp_path):
    records = [
        {"question": q.text, "choices": {"text": q.options, "label": ["A", "B", "C"]}, "answerKey": "ABC"[q.right]}
        for q in QUESTIONS
    ]
    (tmp_path / "arc.json").write_text(json.dumps(records))
    return tmp_path / "arc.json"


@pytest.mark.parametrize(
    ("reply", "exact"),
    [
        *((reply, True) for reply in (" B", "B. blue", " (B)", "B\n\nQuestion", "**B**: blue")),
        *((reply, False) for reply in ("Blue", "", " A", "it is B", " B cat", " B-side")),
    ],
)
def test_the_letter_at_the_beginning_counts(reply, exact):
    assert Outcome(1, QUESTIONS[1], reply, 0).exact is exact


@pytest.mark.parametrize(("likeliest", "likely"), [(1, True), (0, False)])
def test_the_likeliest_letter_counts(likeliest, likely):
    assert Outcome(1, QUESTIONS[1], "", likeliest).likely is likely


def test_the_few_shot_format(loaded):
    form, tokenizer = QAFormat(loaded[1], "few-shot"), loaded[1]
    first, later = form.prompt(QUESTIONS[1], []), form.prompt(QUESTIONS[1], [5])
    text = "Question: What is 1?\nA. red\nB. blue\nC. a cat\nAnswer:"
    assert decode_text(tokenizer, first) == text
    np.testing.assert_array_equal(first, [tokenizer.bos_token_id, *later])
    joined = encode(tokenizer, f"{text} B\n\n", start=False)
    np.testing.assert_array_equal([*later, *form.answer("B", closed=True)], joined)
    assert decode_text(tokenizer, [*later, *form.answer("B")]) == f"{text} B"


def test_the_chat_format_has_turns(loaded):
    form = QAFormat(loaded[1], "chat")
    assert form.examples == 0
    text = decode_text(loaded[1], form.prompt(QUESTIONS[0], []))
    assert text == "USER: What is 0?\nA. red\nB. blue\nC. a cat\nAnswer with the letter alone.\n\nASSISTANT:"


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, INST, None])
def test_a_chat_stands_on_the_stream_as_its_template_renders_it(loaded, template):
    tokenizer = copy.deepcopy(loaded[1])
    tokenizer.chat_template = template
    form, ids = QAFormat(tokenizer, "chat"), []
    for question in QUESTIONS[:3]:
        ids += form.prompt(question, ids).tolist()
        ids += form.answer(question.labels[question.right], closed=True).tolist()
    texts = [f"{q.text}\nA. red\nB. blue\nC. a cat\nAnswer with the letter alone." for q in QUESTIONS[:3]]
    if template is None:
        expected = "\n\n".join(f"USER: {text}\n\nASSISTANT: {'ABC'[i]}" for i, text in enumerate(texts))
    else:
        messages = [{"role": role, "content": ""} for _ in texts for role in ("user", "assistant")]
        for i, text in enumerate(texts):
            messages[2 * i]["content"], messages[2 * i + 1]["content"] = text, "ABC"[i]
        expected = tokenizer.apply_chat_template(messages, tokenize=False).rpartition("</s>")[0]
    found = tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace("<s>", "")
    assert re.sub(r"\s+", "", found) == re.sub(r"\s+", "", expected)  # SentencePiece puts spaces of its own


def test_one_shot_sees_its_whole_stream(loaded, path):
    """A cache too small for a question evicts on the stream alone."""
    options = ExperimentOptions(questions=read_files([path]), recent_size=8)
    rows = EXPERIMENTS["streamqa"].run(ExperimentInputs(*loaded, "", options)).figures.rows
    wide = ExperimentOptions(questions=read_files([path]), recent_size=100)
    expected = EXPERIMENTS["streamqa"].run(ExperimentInputs(*loaded, "", wide)).figures.rows
    assert rows[:5] == expected[:5]


def test_option_nll_equals_that_of_a_text_read_in_one_go(loaded):
    chosen, _ = loaded
    before, options = np.arange(10, 60, dtype=np.int32), np.array([[7, 0, 0], [8, 9, 0], [3, 4, 5]], np.int32)
    counts = np.array([1, 2, 3], np.int32)
    carry = prefill(chosen, init_carry(chosen, 4, 100), before)
    found = option_nll(chosen, carry, options, counts)
    for option, count, nll in zip(options, counts, np.asarray(found), strict=True):
        text = jnp.concatenate([before, option[:count]])
        logits = np.asarray(dense_logits(chosen, text), np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = -sum(logs[len(before) - 1 + i, option[i]] for i in range(count))
        assert nll == pytest.approx(expected, abs=1e-4)


def test_the_stream_holds_questions_and_right_answers_and_nothing_else(subject, monkeypatch):
    """A model that sees all that was read, in place of ours."""
    streams = reads_of(subject, QAMode("streaming", 4, 100), monkeypatch)
    example = "Question: What is 0?\nA. red\nB. blue\nC. a cat\nAnswer: A\n\n"
    assert len(streams) == 5
    assert streams[0] == example + "Question: What is 1?\nA. red\nB. blue\nC. a cat\nAnswer:"
    assert streams[1] == streams[0] + " B\n\nQuestion: What is 2?\nA. red\nB. blue\nC. a cat\nAnswer:"
    alone = reads_of(subject, QAMode("one-shot", 4, 100, one_stream=False), monkeypatch)
    assert alone[3] == example + "Question: What is 4?\nA. red\nB. blue\nC. a cat\nAnswer:"


def reads_of(subject, mode, monkeypatch):
    """The text before each answer, as the streams hold it."""
    seen = []

    class Read(tuple):
        def copy(self):
            return self

    def note(model, carry, ids):
        return Read((*carry, *ids.tolist()))

    def score(model, carry, options, counts):
        seen.append(
            decode_text(subject.tokenizer, carry).replace("\n\n Question", "\n\nQuestion")
        )  # SentencePiece's own space
        return np.zeros(len(counts))

    with monkeypatch.context() as patch:
        patch.setattr(streamqa, "prefill", note)
        patch.setattr(streamqa, "init_carry", lambda *_: Read())
        patch.setattr(streamqa, "option_nll", score)
        patch.setattr(streamqa, "_reply", lambda *_: " A")
        outcomes = list(ask(subject, QAFormat(subject.tokenizer, "few-shot"), QUESTIONS, mode))
    assert [outcome.number for outcome in outcomes] == [2, 3, 4, 5, 6]
    return seen


def test_who_answers_right_scores_all(loaded, path, monkeypatch):
    def knowing(subject, form, questions, mode):
        for number, question in enumerate(questions[1:], 2):
            yield Outcome(number, question, question.labels[question.right], question.right)

    monkeypatch.setattr(streamqa, "ask", knowing)
    report = EXPERIMENTS["streamqa"].run(ExperimentInputs(*loaded, "", ExperimentOptions(questions=read_files([path]))))
    assert [list(row[1:]) for row in report.tables[0].rows[:3]] == [[100.0, 100.0]] * 3
    assert report.tables[0].rows[3] == ["chance", pytest.approx(100 / 3), pytest.approx(100 / 3)]


def test_a_model_answers_every_question_in_every_mode(loaded, path):
    report = EXPERIMENTS["streamqa"].run(
        ExperimentInputs(*loaded, "", ExperimentOptions(questions=read_files([path]), max_questions=4, recent_size=100))
    )
    rows = report.figures.rows
    assert [row[2] for row in rows] == [2, 3, 4] * 3
    assert [row[1] for row in rows[::3]] == ["one-shot", "window 0 + 104", "streaming 4 + 100"]
    one_shot, _, streaming = rows[:3], rows[3:6], rows[6:]
    assert one_shot[0] == (*streaming[0][:1], "one-shot", *streaming[0][2:]), "the first question has the same stream"


def test_too_few_questions_and_another_format(loaded, path):
    with pytest.raises(SllmError, match="arc needs 2 questions or more; got 1"):
        EXPERIMENTS["streamqa"].run(
            ExperimentInputs(*loaded, "", ExperimentOptions(questions=read_files([path]), max_questions=1))
        )
    with pytest.raises(SllmError, match="qa-format 'quiz' is not one of few-shot, chat"):
        ExperimentOptions(qa_format="quiz")
