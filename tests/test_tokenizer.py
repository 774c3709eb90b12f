import json
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import vocabulary_test

from sllm_jax.common.errors import SllmError
from sllm_jax.text.tokenizer import decode_text, encode, load_tokenizer, start_ids

DATA = Path(__file__).parent / "data"
BYTES = DATA / "tiny-tokenizer-bytes"
SPM = DATA / "tiny-tokenizer-spm"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "tokenizers"

pytestmark = pytest.mark.filterwarnings("ignore:builtin type Swig:DeprecationWarning")
TEXTS = st.text(
    st.sampled_from("abcdeilnorst   .,\n\t019étúß▁日本Мы🙂\u0301") | st.characters(codec="utf-8"), max_size=20
)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/tokenizers")
@pytest.mark.parametrize(
    ("source", "tests"),
    [
        ("llama", "llama-spm"),
        ("llama/tokenizer.json", "llama-spm"),
        ("llama/tokenizer.model", "llama-spm"),
        ("falcon", "falcon"),
        ("gpt_neox/20B_tokenizer.json", "mpt"),
    ],
)
def test_ids_equal_those_of_llama_cpp(source, tests):
    tokenizer = load_tokenizer(SHARED / source)
    for text, ids in vocabulary_test(SHARED, tests):
        assert encode(tokenizer, text, start=False).tolist() == ids, repr(text)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/tokenizers")
@pytest.mark.parametrize(
    ("source", "bos", "begin"),
    [
        ("llama", [1], [1]),
        ("llama/tokenizer.model", [1], [1]),
        ("falcon", [], [11]),
        ("gpt_neox/20B_tokenizer.json", [], [0]),
    ],
)
def test_start_of_real_tokenizers(source, bos, begin):
    tokenizer = load_tokenizer(SHARED / source)
    assert encode(tokenizer, "Hello", start=True).tolist() == bos + encode(tokenizer, "Hello", start=False).tolist()
    assert encode(tokenizer, "", start=True).tolist() == bos
    assert start_ids(tokenizer).tolist() == begin
    assert start_ids(tokenizer).dtype == np.int32


def test_ids_are_int32():
    tokenizer = load_tokenizer(SPM)
    for ids in (encode(tokenizer, "", start=False), encode(tokenizer, "the cat", start=True)):
        assert ids.dtype == np.int32


@settings(deadline=None)
@given(TEXTS.filter(lambda text: "<" not in text))  # "<s>" in a text is a special token here, as in transformers
def test_tokenizer_model_gives_the_ids_of_sentencepiece(text):
    expected = sentencepiece_ids(SPM / "tokenizer.model", text)
    for source in (SPM, SPM / "tokenizer.model"):
        tokenizer = cached(source)
        assert encode(tokenizer, text, start=False).tolist() == expected
        assert encode(tokenizer, text, start=True).tolist() == [1, *expected]


def test_folder_with_only_tokenizer_model(tmp_path):
    shutil.copy(SPM / "tokenizer.model", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer.name_or_path == str(tmp_path)
    assert decode_text(tokenizer, encode(tokenizer, " two  spaces, 日本", start=True)) == " two  spaces, 日本"


def test_empty_special_tokens_of_early_llama_conversions(tmp_path):
    shutil.copy(SPM / "tokenizer.model", tmp_path)
    write_settings(tmp_path, bos_token="", eos_token="", unk_token="", tokenizer_class="LLaMATokenizer")
    (tmp_path / "special_tokens_map.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert encode(tokenizer, "the", start=True)[0] == 1


def test_bos_is_left_out_where_the_settings_say_so(tmp_path):
    shutil.copy(SPM / "tokenizer.model", tmp_path)
    write_settings(tmp_path, add_bos_token=False)
    tokenizer = load_tokenizer(tmp_path)
    assert encode(tokenizer, "the", start=True).tolist() == encode(tokenizer, "the", start=False).tolist()


def test_eos_is_never_put_behind_a_text(tmp_path):
    folder = shutil.copytree(SPM, tmp_path / "eos")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    write_settings(folder, bos_token="<s>", eos_token="</s>")  # of no class that decides itself what is added
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("the")[-1] == 2
    assert encode(tokenizer, "the", start=True).tolist() == encode(load_tokenizer(SPM), "the", start=True).tolist()
    assert encode(tokenizer, "", start=True).tolist() == [1]


def test_settings_beside_the_vocabulary_count(tmp_path):
    shutil.copy(SPM / "tokenizer.json", tmp_path)
    assert load_tokenizer(tmp_path).chat_template is None
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "</s>", "eos_token": "<s>"}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("</s>", "<s>")
    assert tokenizer.chat_template == "{{ messages }}"
    assert load_tokenizer(tmp_path / "tokenizer.json").chat_template == "{{ messages }}"


def test_file_of_another_name_takes_no_settings_from_its_folder(tmp_path):
    shutil.copy(BYTES / "tokenizer.json", tmp_path / "my.json")
    write_settings(tmp_path, eos_token="<|padding|>")
    tokenizer = load_tokenizer(tmp_path / "my.json")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|endoftext|>", "<|endoftext|>")


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_characters="<"), max_size=30))
def test_vocab_and_merges(text):
    tokenizer = cached(vocab_and_merges())
    ids = encode(tokenizer, text, start=False)
    assert decode_text(tokenizer, ids) == text
    if "  " not in text:
        assert ids.tolist() == encode(cached(BYTES), text, start=False).tolist()


def test_vocab_without_merges_or_of_another_class(tmp_path):
    folder = shutil.copytree(vocab_and_merges(), tmp_path / "other")
    write_settings(folder, tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(SllmError, match=r"has a vocab\.json but no tokenizer\.json.*got Qwen2Tokenizer.; save"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "merges.txt").unlink()
    with pytest.raises(SllmError, match=r"expected merges\.txt"):
        load_tokenizer(folder)


def test_folder_without_a_tokenizer(tmp_path):
    write_settings(tmp_path)
    assert load_tokenizer(tmp_path) is None


def test_nothing_there(tmp_path):
    with pytest.raises(SllmError, match=r"no tokenizer at .*gone: expected a folder or a file that exists"):
        load_tokenizer(tmp_path / "gone")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "other.json", "tokenizer.bin"])
@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\x00 junk"])
def test_unreadable_tokenizer(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        SllmError, match=rf"{name} is not a (tokenizer that can be read|SentencePiece BPE model)"
    ) as caught:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [SPM / "tokenizer.json", SPM / "tokenizer.model"])
def test_truncated_tokenizer(tmp_path, source):
    (tmp_path / source.name).write_bytes(source.read_bytes()[:3000])
    with pytest.raises(SllmError, match=rf"{source.name} is not a tokenizer that can be read"):
        load_tokenizer(tmp_path)


def test_unreadable_settings(tmp_path):
    shutil.copy(SPM / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(SllmError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(tmp_path)


def test_sentencepiece_model_that_is_not_bpe(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentencepiece import sentencepiece_model_pb2
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((SPM / "tokenizer.model").read_bytes())
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(SllmError, match="is not a SentencePiece BPE model"):
        load_tokenizer(tmp_path)


def test_no_code_is_run_and_no_network_is_used(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = shutil.copytree(SPM, tmp_path / "code")
    write_settings(folder, tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    (folder / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoConfig": "evil.Evil"}}')
    assert encode(load_tokenizer(folder), "the", start=False).tolist() == [262]
    assert not (tmp_path / "run").exists()


def test_loading_says_nothing_and_importing_loads_nothing():
    program = f"""
import sys
from pathlib import Path
from sllm_jax.text.tokenizer import load_tokenizer
assert not {{"transformers", "tokenizers", "sentencepiece"}} & set(sys.modules)
load_tokenizer(Path({str(SPM / "tokenizer.model")!r}))
assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_start_ids(tmp_path):
    tokenizer = load_tokenizer(SPM)
    assert start_ids(tokenizer).tolist() == [1]
    tokenizer.bos_token = None
    assert start_ids(tokenizer).tolist() == [2]
    tokenizer.eos_token = None
    with pytest.raises(SllmError, match="neither a BOS nor an EOS token"):
        start_ids(tokenizer)


def test_decode_leaves_out_special_tokens_and_keeps_spaces():
    tokenizer = load_tokenizer(SPM)
    ids = [1, *encode(tokenizer, "wait , it 's  late .", start=False), 2]
    assert decode_text(tokenizer, ids) == decode_text(tokenizer, np.array(ids)) == "wait , it 's  late ."


CACHE = {}


def vocab_and_merges():
    """The byte-level tokenizer in the two files of GPT-2, without its normalization and added tokens."""
    if "folder" not in CACHE:
        CACHE["folder"] = tempfile.TemporaryDirectory()
        folder = Path(CACHE["folder"].name)
        model = json.loads((BYTES / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = "".join(f"{' '.join(merge)}\n" for merge in model["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
        write_settings(folder, eos_token="<|endoftext|>", tokenizer_class="GPT2Tokenizer")
    return Path(CACHE["folder"].name)


def cached(source):
    if source not in CACHE:
        CACHE[source] = load_tokenizer(source)
    return CACHE[source]


def sentencepiece_ids(model, text):
    if "sentencepiece" not in CACHE:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sentencepiece import SentencePieceProcessor
        CACHE["sentencepiece"] = SentencePieceProcessor(model_file=str(model))
    return CACHE["sentencepiece"].encode(text)


def write_settings(folder, **content):
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
