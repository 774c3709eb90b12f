"""BOS before a text, according to tokenizer_config.json and the tokenizer's post-processor.

The expected ids are those of transformers 4.57, with which these models were published.
"""

import json
import shutil
from pathlib import Path

import pytest
from conftest import SHARED
from tokenizers import processors

from sllm_jax.common.errors import SllmError
from sllm_jax.text.tokenizer import bos_rule, encode, load_tokenizer, start_ids

DATA = Path(__file__).parent / "data"
PUBLISHED = SHARED / "data/tokenizers/llama"
KINDS = ("bytes", "spm")


@pytest.fixture
def published(tmp_path):
    """A tokenizer's folder with a post-processor that adds BOS or nothing, and any tokenizer_config.json."""

    def make(kind: str, post_processor_adds: bool, config: dict) -> Path:
        source = DATA / f"tiny-tokenizer-{kind}"
        tokenizer = load_tokenizer(source)
        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = (
            processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
            if post_processor_adds
            else processors.ByteLevel()  # as in Qwen's, and so in the distills of DeepSeek-R1
        )
        tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
        names = {"bos_token": bos, "eos_token": tokenizer.eos_token}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | config))
        return tmp_path

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("post_processor_adds", [False, True])
@pytest.mark.parametrize(
    ("config", "begins_with_bos"),
    [
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, True),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}, True),
        ({"tokenizer_class": "LlamaTokenizerFast"}, True),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": None}, False),  # null is not absent
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, False),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}, False),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}, None),
        ({"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False}, None),
        ({}, None),
    ],
)
def test_bos_as_published(published, kind, post_processor_adds, config, begins_with_bos):
    tokenizer = load_tokenizer(published(kind, post_processor_adds, config))
    if begins_with_bos is None:
        begins_with_bos = post_processor_adds
    bos = [tokenizer.bos_token_id] if begins_with_bos else []
    assert encode(tokenizer, "the cat", start=True).tolist() == [*bos, *encode(tokenizer, "the cat", start=False)]
    assert encode(tokenizer, "", start=True).tolist() == bos
    assert start_ids(tokenizer).tolist() == [tokenizer.bos_token_id], "a text without a prompt begins with it anyway"


def test_a_distill_of_deepseek_r1_begins_with_its_bos_and_its_chat_has_one(published):
    config = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "legacy": True, "add_eos_token": False}
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = load_tokenizer(published("bytes", False, config | {"chat_template": template}))
    ids = encode(tokenizer, "Who are you?", start=True).tolist()
    assert (ids[0], ids.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Who are you?"}], return_dict=False)
    assert chat == ids


OPTIONS = [({"add_bos_token": True}, [1]), ({}, [1]), ({"add_bos_token": False}, []), ({"add_bos_token": None}, [])]


@pytest.mark.parametrize(("option", "bos"), OPTIONS)
def test_a_sentencepiece_model_alone_follows_the_same_rule(tmp_path, option, bos):
    (tmp_path / "tokenizer.model").write_bytes((DATA / "tiny-tokenizer-spm" / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"} | option))
    assert encode(load_tokenizer(tmp_path), "", start=True).tolist() == bos


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the shared material")
@pytest.mark.parametrize(("option", "bos"), OPTIONS)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_the_published_tokenizer_of_llama(tmp_path, name, option, bos):
    shutil.copyfile(PUBLISHED / name, tmp_path / name)
    config = json.loads((PUBLISHED / "tokenizer_config.json").read_text())
    assert (config.pop("tokenizer_class"), config.pop("add_bos_token")) == ("LlamaTokenizer", True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizer"} | option))
    assert encode(load_tokenizer(tmp_path), "Who are you?", start=True).tolist() == [*bos, 11644, 526, 366, 29973]


def test_a_class_that_adds_bos_without_having_one(published):
    tokenizer = load_tokenizer(published("bytes", False, {"tokenizer_class": "LlamaTokenizerFast", "bos_token": None}))
    assert encode(tokenizer, "", start=True).tolist() == []


@pytest.mark.parametrize("value", ["yes", 1, [True]])
def test_an_add_bos_token_that_is_neither_true_nor_false(value):
    with pytest.raises(SllmError, match=r"add_bos_token in tokenizer_config.json must be true or false; got"):
        bos_rule({"tokenizer_class": "LlamaTokenizer", "add_bos_token": value})
