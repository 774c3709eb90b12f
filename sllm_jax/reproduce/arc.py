"""Multiple-choice questions from files, in the formats in which ARC is distributed (arXiv 1803.05457)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import check_depth
from sllm_jax.common.foreign import foreign
from sllm_jax.common.inputs import read_whole

LABELS = "ABCDEFGH"
FORMS = (
    'expected the Hugging Face format ("question", "choices", "answerKey") or that of LLM-Adapters ("instruction" with '
    '"Answer1: ...", "answer")'
)
_ADAPTERS_OPTION = re.compile(r"Answer(\d+): ")


@dataclass(frozen=True)
class ArcQuestion:
    """A question, its options, and the index of the correct one."""

    text: str
    options: tuple[str, ...]
    right: int

    @property
    def labels(self) -> str:
        """A letter for each option."""
        return LABELS[: len(self.options)]


def read_files(paths: Sequence[Path]) -> dict[str, list[ArcQuestion]]:
    """The questions of each file, keyed by its name, or by its path if names repeat. Raises `SllmError`."""
    names = [path.stem for path in paths]
    if len(set(paths)) < len(paths):
        raise SllmError("a file of questions is given twice; give each once")
    return {
        str(path) if names.count(name) > 1 else name: read_questions(path)
        for path, name in zip(paths, names, strict=True)
    }


def read_questions(path: Path) -> list[ArcQuestion]:
    """The questions of a file with a JSON list or JSON lines. Raises `SllmError` for anything else.

    Supported formats: Hugging Face's `allenai/ai2_arc`, the original JSON lines of ARC, and LLM-Adapters.
    """
    with foreign(
        f"the questions {path}", "convert Parquet files to JSON lines (Dataset.to_json)", "are not UTF-8 text"
    ):
        content = read_whole(path).decode("utf-8-sig")
    records = _records(content, path)
    if not records:
        raise SllmError(f"{path} has no questions; {FORMS}")
    return [_question(record, f"{path}, question {i}") for i, record in enumerate(records, 1)]


def _records(content: str, path: Path) -> Sequence[Any]:
    with foreign(str(path), "give either", "is neither a JSON list nor JSON lines"):
        lines = [content] if content.lstrip().startswith("[") else content.split("\n")
        found = [json.loads(line) for line in lines if line.strip()]
    check_depth(found, str(path))
    return found[0] if content.lstrip().startswith("[") else found


def _question(record: Any, where: str) -> ArcQuestion:
    try:
        text, options, right = _from_adapters(record) if "instruction" in record else _from_hugging_face(record)
        text, options = text.strip(), [option.strip() for option in options]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        got = f"the fields {', '.join(map(str, record)):.200}" if isinstance(record, dict) else type(record).__name__
        raise SllmError(
            f"{where} has another format: {FORMS}; got {got} ({type(error).__name__}: {error!s:.200})"
        ) from error
    if not 2 <= len(options) <= len(LABELS):
        raise SllmError(f"{where} must have 2 to {len(LABELS)} options; got {len(options)}")
    return ArcQuestion(text, tuple(options), right)


def _from_hugging_face(record: Any) -> tuple[str, list[str], int]:
    """`choices` is a pair of lists, or, as in the original, a list of objects inside the question."""
    question = record["question"]
    text = question if isinstance(question, str) else question["stem"]
    choices = record["choices"] if isinstance(question, str) else question["choices"]
    if isinstance(choices, dict):
        labels, options = choices["label"], choices["text"]
    else:
        labels, options = ([choice[name] for choice in choices] for name in ("label", "text"))
    if len(labels) != len(options):
        raise ValueError(f"{len(labels)} labels, {len(options)} options")
    return text, list(options), list(labels).index(record["answerKey"])


def _from_adapters(record: Any) -> tuple[str, list[str], int]:
    asked, found, offered = record["instruction"].strip().partition("\nAnswer1: ")
    if not found:
        raise ValueError("no 'Answer1: ...' after the question")
    before, _, after = asked.partition("the question: ")
    offered, _, _ = offered.partition("\nAnswer format:")
    _, *parts = _ADAPTERS_OPTION.split(f"Answer1: {offered}")
    names, options = [f"answer{number}" for number in parts[::2]], parts[1::2]
    return after or before, options, names.index(record["answer"])
