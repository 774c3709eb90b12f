import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllm_jax.detokenize import MAX_HELD_BYTES, Detokenizer
from sllm_jax.errors import SllmError
from sllm_jax.tokenizer import decode, encode, load_tokenizer

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "tokenizers"
BYTES = load_tokenizer(DATA / "tiny-tokenizer-bytes")
SPM = load_tokenizer(DATA / "tiny-tokenizer-spm")

TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, SPM], ids=["bytes", "spm"])
TEXTS = st.text(st.sampled_from("abcest   .,\n019étß▁日本🙂\u0301\ufffd") | st.characters(codec="utf-8"), max_size=20)
# Ids with many bytes among them, special tokens (0 to 2), added tokens (the last ones) and ids that no token has.
IDS = st.lists(st.integers(0, 2) | st.integers(3, 270) | st.integers(0, 430) | st.integers(376, 384), max_size=16)


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
    assert "".join(streamed) == after(tokenizer, ids, context)
    assert "".join(streamed).count("\ufffd") == text.count("\ufffd")


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
    file = SHARED / "token_tests" / f"{tests}.gguf.inp"
    for text in file.read_bytes().decode().split("\n__ggml_vocab_test__\n"):
        for start in (False, True):
            ids = encode(tokenizer, text, start=start)
            for group in (1, 3):
                assert "".join(pieces(tokenizer, ids, [], group)) == decode(tokenizer, ids)
            assert "".join(pieces(tokenizer, ids[5:], ids[:5], 1)) == after(tokenizer, ids[5:], ids[:5])


def test_a_piece_comes_as_soon_as_it_is_certain():
    text = "the boat é🙂 sunrise"
    for tokenizer in (BYTES, SPM):
        ids = encode(tokenizer, text, start=False)
        told = ""
        detokenizer = Detokenizer(tokenizer)
        for n in range(1, len(ids) + 1):
            told += detokenizer.add(ids[n - 1 : n])
            held = detokenizer._text.rest()
            assert told + held == decode(tokenizer, ids[:n])
            assert held == "" or all(character in "é🙂\ufffd" for character in held)
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


def test_a_run_that_breaks_late_is_replaced_as_a_whole_as_by_decode():
    run = byte_tokens("日本".encode() + b"\xff" + "é".encode())
    assert pieces(SPM, run, [], 1) == [""] * 6 + ["\ufffd" * 7, "\ufffd", "\ufffd", ""]
    assert decode(SPM, run) == "\ufffd" * 9


def test_what_is_held_back_is_bounded():
    streamed = pieces(SPM, byte_tokens("日".encode() * MAX_HELD_BYTES), [], 1)
    held = longest = 0
    for piece in streamed:
        held = held + 1 - len(piece.encode())
        longest = max(longest, held)
    assert "".join(streamed) == "日" * MAX_HELD_BYTES
    assert longest <= MAX_HELD_BYTES


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
    assert after_all - before < 20 * MAX_HELD_BYTES


def test_slow_tokenizer():
    with pytest.raises(SllmError, match="SimpleNamespace cannot be decoded token by token; expected a fast tokenizer"):
        Detokenizer(SimpleNamespace())


def pieces(tokenizer, ids, context, group):
    detokenizer = Detokenizer(tokenizer, context)
    added = [detokenizer.add(ids[i : i + group]) for i in range(0, len(ids), group)]
    return [*added, detokenizer.flush()]


def after(tokenizer, ids, context):
    return decode(tokenizer, [*context, *ids])[len(decode(tokenizer, context)) :]


def byte_tokens(content):
    return SPM.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in content])


def alphabet_tokens():
    """Byte tokens of the byte-level tokenizer, by what they are."""
    from sllm_jax.detokenize import _BYTES

    return {byte: BYTES.convert_tokens_to_ids(letter) for letter, byte in _BYTES.items()}
