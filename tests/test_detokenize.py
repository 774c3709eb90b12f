"""Incremental detokenization against decoding all bytes at once with Python's UTF-8 decoder."""

import codecs
import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import vocabulary_test

from sllm_jax.common.errors import SllmError
from sllm_jax.text.detokenize import Detokenizer, text_lengths
from sllm_jax.text.tokenizer import decode_text, encode, load_tokenizer

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "tokenizers"
BYTES = load_tokenizer(DATA / "tiny-tokenizer-bytes")
SPM = load_tokenizer(DATA / "tiny-tokenizer-spm")

TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, SPM], ids=["bytes", "spm"])
TEXTS = st.text(st.sampled_from("abcest   .,\n019étß▁日本🙂\u0301\ufffd") | st.characters(codec="utf-8"), max_size=20)
# Ids with many bytes among them, special tokens (0 to 2), added tokens (the last ones) and ids that no token has.
IDS = st.lists(st.integers(0, 2) | st.integers(3, 270) | st.integers(0, 430) | st.integers(376, 384), max_size=16)


REAL = ("llama", "falcon", "gpt_neox/20B_tokenizer.json")


@TOKENIZERS
@settings(deadline=None)
@given(ids=IDS, context=IDS, group=st.integers(1, 4))
def test_pieces_of_any_ids_join_to_the_whole(tokenizer, ids, context, group):
    assert "".join(pieces(tokenizer, ids, context, group)) == after(tokenizer, ids, context)


@TOKENIZERS
@settings(deadline=None)
@given(text=TEXTS, prompt=TEXTS, group=st.integers(1, 4))
def test_pieces_of_any_text_join_to_it_without_a_partial_character(tokenizer, text, prompt, group):
    context, ids = encode(tokenizer, prompt, start=True), encode(tokenizer, text, start=False)
    streamed = pieces(tokenizer, ids, context, group)
    assert "".join(streamed) == decode_text(tokenizer, [*context, *ids])[len(decode_text(tokenizer, context)) :]
    assert "".join(streamed).count("\ufffd") == text.count("\ufffd")


@pytest.mark.parametrize("tokenizer", ["bytes", "spm", *REAL], indirect=True)
@settings(deadline=None, max_examples=50)
@given(text=TEXTS)
def test_a_cut_at_any_token_damages_one_character_at_most(tokenizer, text):
    ids = encode(tokenizer, text, start=True).tolist()
    whole = decode_text(tokenizer, ids)
    for cut in range(len(ids) + 1):
        abandoned = Detokenizer(tokenizer).add(ids[:cut])
        finished = "".join(pieces(tokenizer, ids[:cut], [], 1))
        following = "".join(pieces(tokenizer, ids[cut:], ids[:cut], 1))
        assert abandoned + following == whole, "the cut character comes whole with its last token"
        assert finished in [abandoned + "\ufffd" * n for n in range(4)], "only the unfinished character is U+FFFD"


def test_the_emoji_that_is_cut_after_three_bytes_comes_whole():
    context, rest = byte_tokens("🙂".encode()[:3]), byte_tokens("🙂".encode()[3:])
    word = encode(SPM, "World", start=False).tolist()
    assert "".join(pieces(SPM, [*rest, *word], [*word, *context], 1)) == "🙂 World"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/tokenizers")
def test_an_emoji_that_begins_in_the_context_loses_nothing_behind_it():
    llama = load_tokenizer(SHARED / "llama")
    detokenizer = Detokenizer(llama, [7562, 243, 162, 155])
    assert detokenizer.add([131, 1724, 263, 7575, 2462]) + detokenizer.flush() == "😀 What a nice day"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/tokenizers")
@pytest.mark.parametrize(
    ("source", "tests"),
    [
        ("llama", "llama-spm"),
        ("llama/tokenizer.model", "llama-spm"),
        ("falcon", "falcon"),
        ("gpt_neox/20B_tokenizer.json", "mpt"),
    ],
)
def test_pieces_of_the_texts_of_llama_cpp(source, tests):
    tokenizer = load_tokenizer(SHARED / source)
    for text, _ in vocabulary_test(SHARED, tests):
        for start in (False, True):
            ids = encode(tokenizer, text, start=start)
            for group in (1, 3):
                assert "".join(pieces(tokenizer, ids, [], group)) == decode_text(tokenizer, ids)
            assert "".join(pieces(tokenizer, ids[5:], ids[:5], 1)) == after(tokenizer, ids[5:], ids[:5])


def test_a_piece_comes_as_soon_as_it_is_certain():
    text = "the boat é🙂 sunrise"
    for tokenizer in (BYTES, SPM):
        ids = encode(tokenizer, text, start=False)
        told = ""
        detokenizer = Detokenizer(tokenizer)
        for n in range(1, len(ids) + 1):
            told += detokenizer.add(ids[n - 1 : n])
            assert told + detokenizer.held == joined(tokenizer, ids[:n])
            assert set(detokenizer.held) <= {"\ufffd"}
        assert (told, detokenizer.flush()) == (text, "")


def test_leading_space_only_behind_a_context():
    ids = encode(SPM, "the cat", start=False)
    assert "".join(pieces(SPM, ids, [], 1)) == "the cat"
    assert "".join(pieces(SPM, ids, [1], 1)) == "the cat"
    assert "".join(pieces(SPM, ids, [1, *ids], 1)) == " the cat"


def test_flush_ends_a_character_and_the_text_goes_on():
    for tokenizer in (BYTES, SPM):
        smile = encode(tokenizer, "🙂", start=False)
        detokenizer = Detokenizer(tokenizer, context=encode(tokenizer, "a", start=True))
        detokenizer.add(smile[:-1])
        assert set(detokenizer.flush()) <= {" ", "\ufffd"}
        assert detokenizer.flush() == ""
        assert detokenizer.add(encode(tokenizer, " cat", start=False)).strip() == "cat"


def test_a_broken_byte_leaves_the_characters_around_it_alone():
    run = byte_tokens("日本".encode() + b"\xff" + "é".encode())
    assert pieces(SPM, run, [], 1) == ["", "", "日", "", "", "本", "\ufffd", "", "é", ""]
    assert decode_text(SPM, run) == "\ufffd" * 9, "decode replaces the whole run"


def test_an_unfinished_character_that_breaks_is_shown_byte_by_byte():
    run = byte_tokens("日".encode()[:2] + "é".encode())
    assert pieces(SPM, run, [], 1) == ["", "", "\ufffd\ufffd", "é", ""]


@TOKENIZERS
def test_no_more_than_an_unfinished_character_is_held_back(tokenizer):
    run = byte_tokens("日".encode() * 100) if tokenizer is SPM else [alphabet_tokens()[b] for b in "日".encode() * 100]
    streamed = pieces(tokenizer, run, [], 1)
    assert streamed == ["", "", "日"] * 100 + [""]


def test_lengths_of_the_first_tokens_count_an_unfinished_character():
    assert text_lengths(SPM, byte_tokens("a日".encode())) == [0, 1, 2, 3, 2]


@pytest.mark.parametrize("kind", ["random", "eos", "continuation", "lead", "valid"])
@TOKENIZERS
def test_memory_stays_flat(tokenizer, kind):
    size = 2000
    alphabet = byte_tokens(bytes(range(256))) if tokenizer is SPM else alphabet_tokens()
    ids = {
        "random": np.random.default_rng(0).integers(0, 400, size),
        "eos": np.full(size, tokenizer.eos_token_id),
        "continuation": np.full(size, alphabet[0x82]),
        "lead": np.full(size, alphabet[0xE2]),
        "valid": np.resize([alphabet[byte] for byte in "日".encode()], size),
    }[kind]
    detokenizer = Detokenizer(tokenizer)
    detokenizer.add(ids)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for token in ids:
            detokenizer.add([token])
        after_all, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after_all - before < 2**14


def test_slow_tokenizer():
    with pytest.raises(SllmError, match="SimpleNamespace cannot be decoded token by token; expected a fast tokenizer"):
        Detokenizer(SimpleNamespace())


def pieces(tokenizer, ids, context, group):
    detokenizer = Detokenizer(tokenizer, context)
    added = [detokenizer.add(ids[i : i + group]) for i in range(0, len(ids), group)]
    return [*added, detokenizer.flush()]


@pytest.fixture(scope="module")
def tokenizer(request):
    if request.param in ("bytes", "spm"):
        return {"bytes": BYTES, "spm": SPM}[request.param]
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data/tokenizers")
    return load_tokenizer(SHARED / request.param)


def after(tokenizer, ids, context):
    """The text of ids behind a context; a character that the context leaves unfinished belongs to the ids."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace" if byte_level(tokenizer) else "byte by byte")
    decoder.decode(utf8(tokenizer, context))
    text = decoder.decode(utf8(tokenizer, ids), final=True)
    started = any(utf8(tokenizer, [token]) for token in context)
    return text if started or byte_level(tokenizer) else text.removeprefix(" ")


def joined(tokenizer, ids):
    return after(tokenizer, ids, [])


def byte_level(tokenizer):
    return "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)


def utf8(tokenizer, ids):
    """The bytes that tokens stand for; none for special tokens and for ids that no token has."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens = [tokenizer.convert_ids_to_tokens(int(i)) for i in ids if int(i) not in special]
    return b"".join(as_bytes(tokenizer, token) for token in tokens if token is not None)


def as_bytes(tokenizer, token):
    if not byte_level(tokenizer):
        byte = re.fullmatch("<0x(..)>", token)
        return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
    alphabet = {letter: byte for byte, letter in alphabet_letters().items()}
    return bytes(alphabet[letter] for letter in token) if set(token) <= set(alphabet) else token.encode()


def replace_each_byte(error):
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("byte by byte", replace_each_byte)


def byte_tokens(content):
    return SPM.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in content])


def alphabet_letters():
    """The letter of each byte in byte-level tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


def alphabet_tokens():
    """Byte tokens of the byte-level tokenizer, by what they are."""
    return {byte: BYTES.convert_tokens_to_ids(letter) for byte, letter in alphabet_letters().items()}
