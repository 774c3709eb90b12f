"""Tokenizer rules that expand texts excessively are refused on loading; endless searches while encoding."""

import base64
import io
import json
import shutil

import pytest
from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2
from test_tokenizer import BYTES, SPM

from sllm_jax.common.errors import SllmError
from sllm_jax.loading.bundle import bundled_folder, bundled_names
from sllm_jax.text.detokenize import Detokenizer
from sllm_jax.text.long_text import encode_blocks
from sllm_jax.text.plain_text import Part, encode_parts
from sllm_jax.text.tokenizer import decode_text, encode, load_tokenizer
from sllm_jax.text.tokenizer_growth import check_growth

pytestmark = pytest.mark.filterwarnings("ignore:builtin type Swig:DeprecationWarning")
TEN = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
ENDLESS = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
HARD = "a" * 40 + "b"


def sequence(*rules, within="normalizers"):
    return {"type": "Sequence", within: list(rules)}


def table(*texts):
    """A table of SentencePiece with an empty index."""
    content = (4).to_bytes(4, "little") + bytes(4) + b"\0".join(text.encode() for text in texts) + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


@pytest.fixture
def changed(tmp_path):
    """A folder with a tokenizer.json of which parts are others."""

    def change(source=SPM, **parts):
        folder = shutil.copytree(source, tmp_path / "tokenizer")
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | parts))
        return folder

    return change


EXPLODING = {
    "ten times ten": sequence(*[TEN] * 10),
    "of an expression": sequence(*[TEN | {"pattern": {"Regex": "a"}}] * 10),
    "between letters": sequence(*[TEN | {"pattern": {"Regex": ""}, "content": "b"}] * 10),
    "one before each piece": {"type": "Prepend", "prepend": "a" * 1000},
    "sequences in each other": sequence(sequence(sequence(*[TEN] * 5), TEN), sequence(*[TEN] * 4)),
    "a character that a normal form makes long": sequence(
        *[TEN | {"pattern": {"String": " "}, "content": "\ufdfa"}, {"type": "NFKC"}] * 5
    ),
    "without a type": {"normalizers": [{key: value for key, value in TEN.items() if key != "type"}] * 10},
    "a table": table("a", "b" * 10_000),
    "several tables": sequence(*[table("b" * 18)] * 3),
    "bytes of bytes": sequence(*[{"type": "ByteLevel"}] * 10),
}


@pytest.mark.parametrize("normalizer", EXPLODING.values(), ids=EXPLODING)
def test_a_normalizer_that_explodes(changed, normalizer):
    with pytest.raises(SllmError, match=r"tokenizer\.json: its normalizer and pre_tokenizer can make a text \S+ times"):
        load_tokenizer(changed(normalizer=normalizer))


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        sequence(*[{"type": "ByteLevel", "add_prefix_space": True}] * 8, within="pretokenizers"),
        sequence(
            *[{"type": "Metaspace", "replacement": letter, "prepend_scheme": "always"} for letter in "abcdefgh"],
            within="pretokenizers",
        ),
    ],
)
def test_a_pre_tokenizer_that_explodes(changed, pre_tokenizer):
    with pytest.raises(SllmError, match=r"its normalizer and pre_tokenizer can make a text"):
        load_tokenizer(changed(pre_tokenizer=pre_tokenizer))


@pytest.mark.parametrize(
    "decoder",
    [
        sequence(*[TEN] * 10, within="decoders"),
        sequence(sequence(*[TEN] * 10, within="decoders"), {"type": "Fuse"}, within="decoders"),
        sequence(*[TEN | {"pattern": {"String": ""}}] * 10, within="decoders"),
        sequence(*[{"type": "BPEDecoder", "suffix": ""}] * 20, within="decoders"),
    ],
)
def test_a_decoder_that_explodes(changed, decoder):
    with pytest.raises(SllmError, match=r"its decoder can make a text \S+ times as long; expected at most"):
        load_tokenizer(changed(decoder=decoder))


def test_a_file_of_another_name_and_a_sentencepiece_model_are_looked_at_too(changed, tmp_path):
    folder = changed(normalizer=EXPLODING["ten times ten"])
    (folder / "tokenizer.json").rename(folder / "mine.json")
    with pytest.raises(SllmError, match=r"mine\.json: its normalizer"):
        load_tokenizer(folder / "mine.json")
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((SPM / "tokenizer.model").read_bytes())
    model.normalizer_spec.precompiled_charsmap = base64.b64decode(table("b" * 10_000)["precompiled_charsmap"])
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(SllmError, match=r"tokenizer\.model: its normalizer"):
        load_tokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("name", ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"])
def test_a_long_text_in_the_place_of_every_character(changed, name):
    model = json.loads((SPM / "tokenizer.json").read_text())["model"]
    with pytest.raises(SllmError, match=rf"{name} has 1000000 characters; expected at most 256"):
        load_tokenizer(changed(model=model | {name: "a" * 1_000_000}))


@pytest.mark.parametrize(
    "padding",
    [
        {"strategy": {"Fixed": 1_000_000}, "pad_to_multiple_of": None},
        {"strategy": "BatchLongest", "pad_to_multiple_of": 1_000_000},
    ],
)
def test_nothing_is_padded_or_cut(changed, padding):
    padding |= {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    parts = [Part("a text of some letters and </s>", plain=True), Part("</s>", plain=False)]
    expected = encode_parts(load_tokenizer(SPM), parts).tolist()
    assert encode_parts(load_tokenizer(changed(padding=padding, truncation=truncation)), parts).tolist() == expected


def test_tokenizers_as_they_are_published(shared):
    published = shared / "data" / "tokenizers"
    for source in (SPM, BYTES, *map(bundled_folder, bundled_names()), published / "llama", published / "falcon"):
        assert load_tokenizer(source) is not None
    assert load_tokenizer(published / "gpt_neox" / "20B_tokenizer.json") is not None
    assert load_tokenizer(published / "llama" / "tokenizer.model") is not None


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": sequence(SPACES, {"type": "NFKC"}), "pre_tokenizer": {"type": "ByteLevel"}},
        {"normalizer": sequence({"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}, SPACES)},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"normalizer": 7, "decoder": [TEN] * 10, "model": None},  # for the library to refuse
    ],
)
def test_rules_that_published_tokenizers_have(parts):
    check_growth(parts, "tokenizer.json")


def test_the_table_of_sentencepiece_counts_as_the_normal_form_that_it_is(tmp_path):
    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 50),
        model_writer=file,
        vocab_size=20,
        model_type="bpe",
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(file.getvalue())
    tokenizer = load_tokenizer(tmp_path)
    assert decode_text(tokenizer, encode(tokenizer, "\uff41  b", start=False)) == "a b"


def test_an_expression_that_searches_without_end_while_encoding(changed):
    tokenizer = load_tokenizer(changed(normalizer=ENDLESS))
    for call in (
        lambda: encode(tokenizer, HARD, start=False),
        lambda: list(encode_blocks(tokenizer, iter([HARD]))),
        lambda: encode_parts(tokenizer, [Part(f"</s>{HARD}", plain=True)]),
    ):
        with pytest.raises(SllmError, match=r"^the text cannot be encoded by this tokenizer \(.*\); choose another"):
            call()


def test_an_expression_that_searches_without_end_while_decoding(changed):
    folder = changed(decoder=sequence({"type": "Fuse"}, ENDLESS, within="decoders"))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokenizer = load_tokenizer(folder)
    ids = [model["vocab"][letter] for letter in HARD]
    message = r"^the tokens cannot be decoded by this tokenizer \(.*\); choose another"
    with pytest.raises(SllmError, match=message):
        decode_text(tokenizer, ids)
    folder = shutil.copytree(folder, folder.with_name("other"))
    vocabulary = {HARD if token == "a" else token: i for token, i in model["vocab"].items()}
    changes = {"model": model | {"vocab": vocabulary, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(json.loads((folder / "tokenizer.json").read_text()) | changes))
    with pytest.raises(SllmError, match=message):
        Detokenizer(load_tokenizer(folder)).add([model["vocab"]["a"]])
