"""Tokenizers in GGUF files: the ids of llama.cpp's tests, and those of the tokenizers that the files were made of."""

import json
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from llama_cpp import vocabulary_test
from transformers import AutoTokenizer

from sllm_jax.common.errors import SllmError
from sllm_jax.convert import convert
from sllm_jax.text import gguf_tokenizer
from sllm_jax.text.chat import render_turn
from sllm_jax.text.tokenizer import decode_text, encode, load_tokenizer

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "tokenizers"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
TEXTS = [
    *("", " ", "a", " a", "The cat sat.", "  two  spaces ", "don't DON'T", "12345 1 22 333", "日本 🙂 é e\u0301"),
    *("a\n\n b\r\n\tc", "x_y-z!?...", "\u00a0no break", "ﬁ Ω Ά", "<|im_end|>", "</s> <s>", "a" * 50, "\u2026\u2019s"),
]


def of_tokenizer_json(file, pre):
    """The metadata that convert_hf_to_gguf.py makes of a byte-level BPE."""
    content = json.loads(file.read_text(encoding="utf-8"))
    vocab = dict(content["model"]["vocab"])
    kinds = dict.fromkeys(vocab.values(), NORMAL)
    for token in content["added_tokens"]:
        vocab[token["content"]] = token["id"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    by_id = {number: text for text, number in vocab.items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id) + 1)],
        "tokenizer.ggml.token_type": [kinds.get(i, UNUSED) for i in range(max(by_id) + 1)],
        "tokenizer.ggml.merges": merges,
    }


def of_sentencepiece(file):
    """The metadata that convert_hf_to_gguf.py makes of a SentencePiece model."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.piece for piece in proto.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in proto.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in proto.pieces],
        "tokenizer.ggml.bos_token_id": proto.trainer_spec.bos_id,
        "tokenizer.ggml.eos_token_id": proto.trainer_spec.eos_id,
        "tokenizer.ggml.unknown_token_id": proto.trainer_spec.unk_id,
        "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
    }


def written(tmp_path, metadata, arch="llama"):
    return gguf_files.write(tmp_path / "vocabulary.gguf", arch, {}, {"a": np.zeros(32, np.float32)}, None, metadata)


pytestmark = pytest.mark.filterwarnings("ignore:builtin type Swig:DeprecationWarning")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/tokenizers")
@pytest.mark.parametrize(
    ("source", "pre", "tests"),
    [
        ("llama/tokenizer.model", None, "llama-spm"),
        ("falcon/tokenizer.json", "falcon", "falcon"),
        ("gpt_neox/20B_tokenizer.json", "mpt", "mpt"),
        ("gpt_neox/20B_tokenizer.json", "olmo", "mpt"),
    ],
)
def test_ids_equal_those_of_llama_cpp(tmp_path, source, pre, tests):
    metadata = of_tokenizer_json(SHARED / source, pre) if pre else of_sentencepiece(SHARED / source)
    tokenizer = load_tokenizer(written(tmp_path, metadata))
    for text, ids in vocabulary_test(SHARED, tests):
        assert encode(tokenizer, text, start=False).tolist() == ids, repr(text)


@pytest.mark.parametrize("kind", ["spm", "bytes"])
def test_ids_and_texts_equal_those_of_its_source(tmp_path, kind):
    source = DATA / f"tiny-tokenizer-{kind}"
    theirs = load_tokenizer(source / "tokenizer.model" if kind == "spm" else source)
    spm = kind == "spm"
    metadata = (
        of_sentencepiece(source / "tokenizer.model") if spm else of_tokenizer_json(source / "tokenizer.json", "olmo")
    )
    ours = load_tokenizer(written(tmp_path, metadata))
    assert len(ours) == len(theirs)
    for text in TEXTS:
        ids = encode(theirs, text, start=spm)
        assert encode(ours, text, start=spm).tolist() == ids.tolist(), repr(text)
        assert decode_text(ours, ids) == decode_text(theirs, ids)
        assert encode(ours, text, start=False, control_tokens=True).tolist() == (
            encode(theirs, text, start=False, control_tokens=True).tolist()
        )


# The patterns as the tokenizer.json of a model of each kind has them, written down from there.
PUBLISHED = {
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_words_are_cut_as_published(name):
    assert gguf_tokenizer._CUTS[name].patterns == (PUBLISHED[name],)


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "In 1789, don't!", ["In", "Ġ1789", ",", "Ġdon", "'t", "!"]),
        ("smollm", "In 1789, don't!", ["In", "Ġ", "1", "7", "8", "9", ",", "Ġdon", "'t", "!"]),
        ("llama-bpe", "In 1789, DON'T!\n\n x", ["In", "Ġ", "178", "9", ",", "ĠDON", "'T", "!ĊĊ", "Ġx"]),
        ("qwen2", "In 17", ["In", "Ġ", "1", "7"]),
        ("falcon", "a$$b 12345", ["a", "$$", "b", "Ġ", "123", "45"]),
        ("tekken", "aBc/d", ["a", "Bc", "/d"]),
    ],
)
def test_words(tmp_path, pre, text, words):
    metadata = of_tokenizer_json(DATA / "tiny-tokenizer-bytes" / "tokenizer.json", pre)
    tokenizer = load_tokenizer(written(tmp_path, metadata))
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [word for word, _ in cut] == words


@pytest.mark.parametrize(("arch", "expected"), [("qwen2", "é"), ("mpt", "é"), ("llama", None)])
def test_a_file_without_a_pre_tokenizer_has_that_of_its_architecture(tmp_path, arch, expected):
    metadata = of_tokenizer_json(DATA / "tiny-tokenizer-bytes" / "tokenizer.json", None)
    del metadata["tokenizer.ggml.pre"]
    file = written(tmp_path, metadata, arch)
    if expected is None:
        with pytest.raises(SllmError, match=r"names no pre-tokenizer; known are gpt-2, .* \(--tokenizer\)"):
            load_tokenizer(file)
    else:
        assert load_tokenizer(file).backend_tokenizer.normalizer.normalize_str("e\u0301") == expected


@pytest.mark.parametrize(
    ("pre", "flag", "begins"),
    [("gpt-2", None, False), ("gpt-2", True, True), ("llama3", None, True), ("llama3", False, False)],
)
def test_bos_follows_the_flag_and_else_the_kind(tmp_path, pre, flag, begins):
    metadata = of_tokenizer_json(DATA / "tiny-tokenizer-bytes" / "tokenizer.json", pre)
    metadata |= {"tokenizer.ggml.bos_token_id": 1} | ({} if flag is None else {"tokenizer.ggml.add_bos_token": flag})
    tokenizer = load_tokenizer(written(tmp_path, metadata))
    assert (encode(tokenizer, "a", start=True).tolist()[0] == 1) == begins


def test_the_chat_template_comes_along(tmp_path):
    metadata = of_tokenizer_json(DATA / "tiny-tokenizer-bytes" / "tokenizer.json", "gpt-2")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    metadata |= {"tokenizer.chat_template": template}
    tokenizer = load_tokenizer(written(tmp_path, metadata))
    assert np.array_equal(render_turn(tokenizer, "Hello", first=True), encode(tokenizer, "user: Hello\n", start=False))
    metadata |= {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "tools"}
    tokenizer = load_tokenizer(written(tmp_path, metadata))
    assert tokenizer.chat_template == {"default": template, "tool_use": "tools"}


def test_a_converted_file_has_the_tokenizer_for_transformers(tmp_path):
    import checkpoints

    metadata = of_sentencepiece(DATA / "tiny-tokenizer-spm" / "tokenizer.model")
    file = gguf_files.write_model(tmp_path / "model.gguf", checkpoints.llama(), tokenizer=metadata)
    convert(file, tmp_path / "out")
    ours, theirs = load_tokenizer(file), AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == encode(ours, text, start=True, control_tokens=True).tolist()
    assert theirs.eos_token == ours.eos_token == "</s>"


def test_a_file_without_a_tokenizer(tmp_path):
    assert load_tokenizer(written(tmp_path, {})) is None
    assert load_tokenizer(written(tmp_path, {"tokenizer.ggml.model": "none"})) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, r"the tokenizer 't5' is not supported; known are llama and gpt2; give the"),
        ({"tokenizer.ggml.pre": "viking"}, r"has the pre-tokenizer 'viking', which is not known; known are gpt-2"),
        ({"tokenizer.ggml.merges": ["a"]}, "expected merges of two tokens each"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "expected merges of two tokens each"),
        ({"tokenizer.ggml.merges": ["no such"]}, "is not a tokenizer that can be read"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "expected a text, a score and a type for each token; got"),
        ({"tokenizer.ggml.token_type": None}, "texts, .* scores and 0 types"),
        ({"tokenizer.ggml.model": "llama"}, "texts, 0 scores"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens must be of type list"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "bos_token_id 1000000 is outside the"),
        ({"tokenizer.ggml.bos_token_id": "one"}, "tokenizer.ggml.bos_token_id must be of type integer"),
        ({"tokenizer.chat_template": 3}, "tokenizer.chat_template must be of type str"),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(tmp_path, changes, message):
    metadata = of_tokenizer_json(DATA / "tiny-tokenizer-bytes" / "tokenizer.json", "gpt-2")
    kept = {key: value for key, value in (metadata | changes).items() if value is not None}
    with pytest.raises(SllmError, match=message):
        load_tokenizer(written(tmp_path, kept))


def test_a_token_that_stands_twice_is_refused(tmp_path):
    metadata = of_tokenizer_json(DATA / "tiny-tokenizer-bytes" / "tokenizer.json", "gpt-2")
    metadata["tokenizer.ggml.tokens"][5] = metadata["tokenizer.ggml.tokens"][4]
    with pytest.raises(SllmError, match="a token stands twice in its vocabulary"):
        load_tokenizer(written(tmp_path, metadata))


def test_pieces_that_would_take_hours_are_refused(tmp_path):
    metadata = of_sentencepiece(DATA / "tiny-tokenizer-spm" / "tokenizer.model")
    metadata["tokenizer.ggml.tokens"][40] = "x" * 2**15
    with pytest.raises(SllmError, match="its tokens are too long for SentencePiece"):
        load_tokenizer(written(tmp_path, metadata))
