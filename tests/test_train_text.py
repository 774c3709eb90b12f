"""From text files to samples: documents, the tokenizer, packing, and the order of samples."""

import lzma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from training import CONFIG, documents
from transformers import AutoTokenizer

from sllm_jax.common.errors import SllmError
from sllm_jax.text.tokenizer import encode, load_tokenizer
from sllm_jax.train.bpe import END_OF_TEXT, SINK_TOKEN, save_tokenizer, train_tokenizer
from sllm_jax.train.packing import Samples, pack
from sllm_jax.train.text import hold_back, read_documents


@pytest.fixture(scope="module")
def tokenizers():
    """For each sink a tokenizer trained on the same text."""
    return {sink: train_tokenizer(documents(), 290, sink, 16) for sink in ("none", "zero", "learnable")}


def test_documents_end_at_form_feeds_and_files_follow_each_other(tmp_path):
    (tmp_path / "a.txt").write_text("\f one\ntwo \f\f\n\nthree\n\f \f")
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress("café\fvier".encode()))
    found = read_documents([tmp_path / "a.txt", tmp_path / "b.txt.xz"])
    assert found == ["one\ntwo", "three", "café", "vier"]


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(10, 1, [5]), (10, 2, [2, 7]), (7, 3, [1, 3, 5]), (2, 1, [1])]
)
def test_whole_documents_are_held_back_evenly(total, count, expected):
    texts = [f"text {i}" for i in range(total)]
    learned, held = hold_back(texts, count)
    assert held == [texts[i] for i in expected]
    assert learned == [text for text in texts if text not in held]


@examples(deadline=None)
@given(total=st.integers(2, 60), count=st.integers(1, 59))
def test_held_back_and_learned_are_all_there_is(total, count):
    texts = [f"text {i}" for i in range(total)]
    if count >= total:
        with pytest.raises(SllmError, match=f"cannot hold back {count} of {total} documents"):
            hold_back(texts, count)
        return
    learned, held = hold_back(texts, count)
    assert len(held) == count
    assert sorted(learned + held) == sorted(texts)


def test_a_single_document_loses_its_last_tenth():
    text = "".join(chr(i) for i in range(100, 300))
    assert hold_back([text], 3) == ([text[:180]], [text[180:]])


def test_the_vocabulary_has_exactly_the_size_and_the_same_merges_whatever_the_sink(tokenizers):
    assert [len(tokenizer) for tokenizer in tokenizers.values()] == [290] * 3
    assert tokenizers["none"].get_vocab() == tokenizers["zero"].get_vocab() == tokenizers["learnable"].get_vocab()
    ids = [tokenizer.encode("the rain, far away", add_special_tokens=False) for tokenizer in tokenizers.values()]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) < len("the rain, far away"), "nothing was merged"


@pytest.mark.parametrize(
    ("size", "message"), [(257, "vocab_size must be 258 or more"), (5000, "the text is too small")]
)
def test_a_vocabulary_that_cannot_be_is_refused(size, message):
    with pytest.raises(SllmError, match=message):
        train_tokenizer(documents(), size, "none", 16)


@examples(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(tokenizers, text):
    for tokenizer in tokenizers.values():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_only_a_learnable_sink_puts_its_token_first(tokenizers, tmp_path):
    for sink, tokenizer in tokenizers.items():
        save_tokenizer(tokenizer, tmp_path / sink)
        plain = tokenizer.encode("the cat", add_special_tokens=False)
        expected = [tokenizer.convert_tokens_to_ids(SINK_TOKEN)] * (sink == "learnable") + plain
        assert AutoTokenizer.from_pretrained(tmp_path / sink)("the cat")["input_ids"] == expected
        ours = load_tokenizer(tmp_path / sink)
        assert encode(ours, "the cat", start=True).tolist() == expected
        assert encode(ours, "the cat", start=False).tolist() == plain
        assert ours.bos_token == (SINK_TOKEN if sink == "learnable" else END_OF_TEXT)
        assert ours.eos_token == END_OF_TEXT


def test_a_document_that_spells_the_end_of_text_is_one_document(tokenizers):
    tokenizer = tokenizers["none"]
    row = pack(tokenizer, [f"one{tokenizer.eos_token}two"])
    assert row.tolist().count(tokenizer.eos_token_id) == 2


def test_end_of_text_stands_around_every_document(tokenizers):
    tokenizer, texts = tokenizers["learnable"], ["the cat", "a mat", "rain"]
    heard = []
    row = pack(tokenizer, texts, lambda done, total: heard.append((done, total)))
    end = tokenizer.eos_token_id
    expected = [end]
    for text in texts:
        expected += [*tokenizer.encode(text, add_special_tokens=False), end]
    assert (row.dtype, row.tolist()) == (np.int32, expected)
    assert heard == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("length", [9, 16, 17, 18, 100])
def test_samples_hold_each_successor_once(length):
    samples = Samples(np.arange(length), 8)
    taken = samples.take(np.arange(len(samples)))
    assert taken.dtype == np.int32
    np.testing.assert_array_equal(taken[:, 1:], taken[:, :-1] + 1)
    targets = taken[:, 1:].ravel()
    assert targets.tolist() == list(range(1, len(samples) * 8 + 1))
    assert length - 1 - len(targets) < 8, "more is left out than does not fill a sample"


def test_too_few_tokens_for_a_sample_are_refused():
    with pytest.raises(SllmError, match="a sample takes 9 tokens, and it has 8"):
        Samples(np.arange(8), 8)


def test_a_sink_takes_the_place_of_the_first_token_and_changes_no_target():
    numbers = np.arange(5)
    plain, with_sink = (Samples(np.arange(100), 8, sink).take(numbers) for sink in (None, 1000))
    assert (with_sink[:, 0] == 1000).all()
    np.testing.assert_array_equal(with_sink[:, 1:], plain[:, 1:])


@pytest.mark.parametrize("size", [1, 3, 4, 12, 30])  # 12 samples: a batch may be a part of a pass, or several
def test_every_pass_takes_each_sample_once_in_a_new_order(size):
    row = np.arange(8 * 12 + 1)
    first = np.concatenate([Samples(row, 8).batch(7, step, size)[:, 0] // 8 for step in range(60 // size)])
    passes = first.reshape(-1, 12)
    for one in passes:
        assert sorted(one) == list(range(12))
    assert len({tuple(one) for one in passes}) == len(passes) == 5


def test_the_order_is_a_function_of_seed_and_step():
    row = np.arange(8 * 12 + 1)

    def batch(seed, step):
        return Samples(row, 8).batch(seed, step, 4).tolist()

    forwards = [batch(1, step) for step in range(9)]
    assert forwards == [batch(1, step) for step in reversed(range(9))][::-1]
    assert forwards != [batch(2, step) for step in range(9)]


def test_evaluated_samples_are_spread_over_the_text():
    samples = Samples(np.arange(8 * 12 + 1), 8)
    assert (samples.evenly(4)[:, 0] // 8).tolist() == [0, 3, 7, 11]
    assert len(samples.evenly(100)) == 12


def test_the_context_of_the_config_is_the_length_the_tokenizer_names(tokenizers):
    assert tokenizers["none"].model_max_length == CONFIG["max_position_embeddings"]
