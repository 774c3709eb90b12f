"""Texts tokenized in blocks: the ids of the whole text, for any tokenizer, text and block size."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import resident_megabytes

from sllm_jax.common.errors import SllmError
from sllm_jax.evaluate.evaluation import Evaluation, EvaluationSettings
from sllm_jax.loading.pretrained import load
from sllm_jax.text.long_text import encode_blocks, file_blocks, tokenize_file
from sllm_jax.text.tokenizer import encode, load_tokenizer

WORDS = [
    "the",
    "cat",
    "sat",
    "window",
    "rain.",
    "Rain,",
    "\n\n",
    "12,345",
    "don't",
    "é漢字",
    "🤖🇩🇪",
    "  ",
    "\t",
    "<s>",
    "</s>",
]
OURS = ("tiny-llama", "tiny-tokenizer-bytes", "tiny-tokenizer-spm")
SHARED = ("llama", "llama/tokenizer.model", "gpt_neox/20B_tokenizer.json", "falcon")


def text_of(count, seed=0):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def blocks_of(text, size):
    return (text[i : i + size] for i in range(0, len(text), size))


def assert_as_in_one_go(tokenizer, text, size, overlap, control_tokens=False):
    blocks = list(encode_blocks(tokenizer, blocks_of(text, size), overlap, control_tokens))
    np.testing.assert_array_equal(
        np.concatenate([block.tokens.ids for block in blocks]), encode(tokenizer, text, False, control_tokens)
    )
    assert "".join(block.text for block in blocks) == text
    for block in blocks:
        assert (block.tokens.starts >= 0).all()
        assert (block.tokens.ends <= len(block.text)).all() or block is not blocks[-1]
    return len(blocks)


@pytest.fixture(scope="module", params=OURS)
def tokenizer(request, data):
    return load_tokenizer(data / request.param)


@pytest.mark.parametrize("control_tokens", [False, True])
def test_control_tokens_in_a_file_are_text_unless_they_are_let_through(tokenizer, tmp_path, control_tokens):
    special = str(tokenizer.added_tokens_decoder[tokenizer.eos_token_id])
    text = text_of(300) + special + text_of(300)
    assert_as_in_one_go(tokenizer, text, 500, 100, control_tokens)
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    found = tokenize_file(tokenizer, path, tmp_path / "ids", control_tokens=control_tokens)
    assert (tokenizer.eos_token_id in found.ids[1:]) == control_tokens


@pytest.mark.parametrize(("size", "overlap"), [(1000, 1000), (3000, 400), (20000, 4096)])
def test_blocks_have_the_ids_of_the_whole(tokenizer, size, overlap):
    assert assert_as_in_one_go(tokenizer, text_of(20000), size, overlap) > 3


def test_runs_of_one_character(tokenizer):
    assert_as_in_one_go(tokenizer, "a" * 9000 + " " * 9000 + "\n" * 5000 + "ab" * 5000, 1000, 500)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=2000), size=st.integers(1, 300), overlap=st.integers(1, 300))
def test_any_text_in_any_blocks(tokenizer, text, size, overlap):
    assert_as_in_one_go(tokenizer, text, size, overlap)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("text", ["wikitext2/wiki.test.raw", "tinyshakespeare.txt"])
def test_real_tokenizers_and_real_texts(shared, name, text):
    tokenizer = load_tokenizer(shared / "data/tokenizers" / name)
    whole = (shared / "data/text" / text).read_text()[:400_000]
    assert assert_as_in_one_go(tokenizer, whole, 2**16, 2**12) > 4


@pytest.mark.parametrize("limit", [None, 1, 2, 700, 5000])
def test_a_file_becomes_token_ids_and_tells_their_bytes(tokenizer, tmp_path, monkeypatch, limit):
    monkeypatch.setattr("sllm_jax.text.long_text.BLOCK_SIZE", 1000)
    path, text = tmp_path / "text.txt", " ".join(["The cat sat, the räin fell on the window."] * 100)
    path.write_text(text)
    told = []
    found = tokenize_file(tokenizer, path, tmp_path / "ids", limit, lambda done, total: told.append((done, total)))
    expected = encode(tokenizer, text, start=True)[:limit]
    np.testing.assert_array_equal(found.ids, expected)
    assert found.ids.dtype == np.int32
    assert told[-1][1] == path.stat().st_size
    if limit is None:
        assert told[-1] == (path.stat().st_size,) * 2
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    start = len(expected) - len(offsets) if limit is None else len(encode(tokenizer, "", start=True))
    ends = [0] * start + [len(text[:end].encode()) for _, end in offsets]
    assert found.predicted_bytes == ends[: len(expected)][-1] - ends[0]


def test_a_file_with_nothing_to_read_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "late.txt").write_bytes(b"a" * 20000 + b"\xff")
    for name, message in (("empty.txt", "is empty"), ("late.txt", "is not UTF-8 text"), ("none", "cannot be read .No")):
        with pytest.raises(SllmError, match=message):
            list(file_blocks(tmp_path / name, 1000))


def growth(seen):
    """From the second tenth of some work to its last: the medians of what was seen, (share done, value) each."""
    second, last = (np.median([value for share, value in seen if low <= share <= low + 0.1]) for low in (0.1, 0.9))
    return last - second


@pytest.mark.slow
def test_memory_does_not_grow_over_ten_million_tokens(data, tmp_path):
    model, tokenizer = load(data / "tiny-llama")
    block, path = text_of(100_000), tmp_path / "text.txt"
    with path.open("w") as file:
        for _ in range(32):
            file.write(block)
    tokenizing, reading = [], []

    def note(done, total):
        tokenizing.append((done / total, resident_megabytes("RssAnon")))

    found = tokenize_file(tokenizer, path, tmp_path / "ids", None, note)
    (tmp_path / "evaluation").mkdir()
    one = Evaluation(tmp_path / "evaluation", model, [found.ids], EvaluationSettings("streaming", 4, 123, 512), {})
    for i, (done, _) in enumerate(one.steps()):
        if i % 50 == 0:
            reading.append((done / one.total, resident_megabytes("RssAnon")))
    print(f"{one.total} tokens: {growth(tokenizing):.1f} MB more while tokenizing, {growth(reading):.1f} while reading")
    assert one.total > 10_000_000
    assert max(growth(tokenizing), growth(reading)) < 30  # 4 bytes for each token in between would be 39 MB
