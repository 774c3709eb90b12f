"""Mutations of files: of raw bytes, and of JSON by structure."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.5, float("nan"), float("inf")),
    *("", "a", "\0", "\ud800", "日本", "a" * 10_000, "{{ 1/0 }}", "../../etc/passwd", "<s>", "%n%s"),
    *([], {}, [[]], {"a": {}}, [0] * 1000, {"": None}),
)
NESTED = 2000


def mutate(path: Path, rng: np.random.Generator) -> None:
    """Damage a file: one that holds JSON in its structure, half of the time; the bytes of any other."""
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.5:
        content = mutated_json(content, rng)
    else:
        for _ in range(int(rng.integers(1, 4))):
            content = mutated_bytes(content, rng)
    path.write_bytes(content)


def mutated_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes flipped, cut out, inserted, repeated, zeroed, moved or made large numbers, more often at the start."""
    size = len(content)
    span = size if rng.random() < 0.5 else min(size, 256)  # headers lie at the start
    begin = int(rng.integers(span + 1))
    end = min(size, begin + int(rng.integers(1, 1 + int(2 ** rng.integers(0, 10)))))
    part, noise = content[begin:end], rng.bytes(max(end - begin, 1))
    match int(rng.integers(8)):
        case 0:
            flipped = bytes(byte ^ (1 << int(rng.integers(8))) for byte in part[:1])
            return content[:begin] + flipped + content[begin + len(flipped) :]
        case 1:
            return content[:begin]
        case 2:
            return content[:begin] + content[end:]
        case 3:
            return content[:begin] + noise + content[begin:]
        case 4:
            return content[:begin] + part * int(rng.integers(2, 50)) + content[end:]
        case 5:
            return content[:begin] + bytes(len(part)) + content[end:]
        case 6:
            place = int(rng.integers(size + 1))
            return content[:place] + part + content[place:]
        case _:
            return content[:begin] + b"\xff" * min(8, size - begin) + content[begin + 8 :]


def mutated_json(content: bytes, rng: np.random.Generator) -> bytes:
    """A value replaced, removed, doubled or nested deeply, anywhere in the tree."""
    tree = json.loads(content)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(tree))
        holder, key = places[int(rng.integers(len(places)))] if places else (None, None)
        value = NASTY[int(rng.integers(len(NASTY)))]
        if holder is None:
            tree = copy.deepcopy(value)
        elif rng.random() < 0.2:
            del holder[key]
        elif isinstance(holder, list) and rng.random() < 0.2:
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(value)
    text = json.dumps(tree)
    if rng.random() < 0.02:
        text = "[" * NESTED + text + "]" * NESTED
    return text.encode("utf-8", "surrogatepass")


def _places(tree: Any) -> Any:
    """Every (holder, key) of a tree, at most some thousand: vocabularies are long."""
    inside = [tree]
    while inside:
        holder = inside.pop()
        keys = (
            list(holder) if isinstance(holder, dict) else list(range(len(holder))) if isinstance(holder, list) else []
        )
        for key in keys[:200]:
            yield holder, key
            inside.append(holder[key])
