"""Files of questions: every format in which ARC is distributed, and a clear error for anything else."""

import json
import subprocess
import sys

import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.reproduce.arc import ArcQuestion, read_files, read_questions

SIZE = 500_000  # the square of which takes hours
EXPECTED = ArcQuestion("Why is the sky blue?", ("It is painted.", "Air scatters light."), 1)
CHOICES = {"text": list(EXPECTED.options), "label": ["A", "B"]}
OBJECTS = [{"text": text, "label": label} for text, label in zip(EXPECTED.options, "12", strict=True)]
FORMS = {
    "hugging face": {"id": "1", "question": EXPECTED.text, "choices": CHOICES, "answerKey": "B"},
    "hugging face, objects": {"question": EXPECTED.text, "choices": OBJECTS, "answerKey": "2"},
    "original": {"question": {"stem": EXPECTED.text, "choices": OBJECTS}, "answerKey": "2"},
    "adapters": {
        "instruction": "Please choose the correct answer to the question: Why is the sky blue?\n\n"
        "Answer1: It is painted. Answer2: Air scatters light.\n\nAnswer format: answer1/answer2",
        "input": "",
        "answer": "answer2",
    },
}


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "questions.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_as_a_list_and_as_lines(written, form):
    assert read_questions(written([form, form])) == [EXPECTED] * 2
    assert read_questions(written(f"{json.dumps(form)}\n\n{json.dumps(form)}\n")) == [EXPECTED] * 2


def test_labels_are_letters():
    assert EXPECTED.labels == "AB"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no questions; expected the Hugging Face format"),
        ("[]", "has no questions"),
        ("[1", "is neither a JSON list nor JSON lines"),
        ([7], r"question 1 has another format: .*; got int"),
        (
            [FORMS["original"], {"prompt": "?"}],
            r"question 2 has another format: .*; got the fields prompt .KeyError: 'qu",
        ),
        ([FORMS["hugging face"] | {"answerKey": "C"}], "question 1 has another format"),
        ([FORMS["hugging face"] | {"choices": {"text": ["a", "b"], "label": ["A"]}}], "1 labels, 2 options"),
        ([FORMS["hugging face"] | {"choices": {"text": ["a"], "label": ["B"]}}], "must have 2 to 8 options; got 1"),
        ([FORMS["adapters"] | {"instruction": "Why?"}], "no 'Answer1: ...' after the question"),
        ([FORMS["adapters"] | {"answer": "answer3"}], "another format"),
        ([FORMS["hugging face"] | {"choices": {"text": [1, 2], "label": ["A", "B"]}}], "question 1 has another format"),
        ([FORMS["original"] | {"question": {"stem": None, "choices": OBJECTS}}], "question 1 has another format"),
    ],
)
def test_other_files_are_refused(written, content, message):
    with pytest.raises(SllmError, match=message):
        read_questions(written(content))


def test_texts_may_hold_any_character(written):
    form = FORMS["hugging face"] | {"question": "Why\u2028is\x85the sky blue?"}
    assert read_questions(written(json.dumps(form, ensure_ascii=False) + "\n"))[0].text == form["question"]


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("easy", "hard"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.json").write_text(json.dumps([FORMS["original"]]))
    paths = [tmp_path / "easy/test.json", tmp_path / "hard/test.json"]
    assert list(read_files(paths)) == [str(path) for path in paths]
    assert list(read_files(paths[:1])) == ["test"]
    with pytest.raises(SllmError, match=r"given twice"):
        read_files([paths[0]] * 2)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(SllmError, match=r"none.json cannot be read .No such file"):
        read_questions(tmp_path / "none.json")
    (tmp_path / "arc.parquet").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(SllmError, match=r"not UTF-8 text .*; convert Parquet files to JSON lines \(Dataset.to_json\)"):
        read_questions(tmp_path / "arc.parquet")


@pytest.mark.parametrize(
    ("name", "count"),
    [("ARC-Easy_test", 2376), ("ARC-Easy_train", 2251), ("ARC-Challenge_test", 1172), ("ARC-Challenge_train", 1119)],
)
def test_the_real_files(shared, name, count):
    questions = read_questions(shared / f"data/prompts/arc/{name}.json")
    assert len(questions) == count
    assert {len(question.options) for question in questions} <= {3, 4, 5}
    assert not any("Answer" in option and "format" in option for q in questions for option in q.options)


def test_a_real_question_word_for_word(shared):
    question = read_questions(shared / "data/prompts/arc/ARC-Challenge_test.json")[1]
    assert question.text.startswith("A group of engineers wanted to know how different building designs")
    assert question.text.endswith("Which will most likely result from testing different building designs?")
    assert question.options == (
        "buildings will be built faster",
        "buildings will be made safer",
        "building designs will look nicer",
        "building materials will be cheaper",
    )
    assert question.right == 1


ADVERSARIAL = {
    "options without an end": "Which?\nAnswer1: " + "Answer1" * SIZE,
    "a number without an end": "Which?\nAnswer1: Answer" + "1" * SIZE,
    "line breaks": "Which?" + "\n" * SIZE + "Answer1: a",
    "line breaks and no option": "Which?" + "\n" * SIZE + "Answer2: a",
    "questions": "the question: " * SIZE + "\nAnswer1: a Answer2: b",
    "formats": "Which?\nAnswer1: a" + "\nAnswer format" * SIZE,
    "spaces": "Which?\nAnswer1: a" + " " * SIZE + "Answer2",
}


def test_no_question_takes_time_that_grows_with_its_square(tmp_path):
    for i, text in enumerate(ADVERSARIAL.values()):
        record = {"instruction": text, "answer": "answer1"}
        (tmp_path / f"{i}.json").write_text(json.dumps([record]))
    program = (
        "import sys; from pathlib import Path; from sllm_jax.common.errors import SllmError; "
        "from sllm_jax.reproduce.arc import read_questions\n"
        "for path in Path(sys.argv[1]).glob('*.json'):\n"
        "    try: read_questions(path)\n"
        "    except SllmError: pass"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, timeout=60)
