"""The tokenizer of a checkpoint: loading, encoding, decoding.

Tokenizers are `PreTrainedTokenizerFast` of `transformers`, which is imported only when one is loaded. `tokenizer.json`
is used unchanged. `AutoTokenizer` of transformers 5 instead rebuilds a Llama tokenizer from its vocabulary, which
changes the ids of 15 of the 47 texts in llama.cpp's vocabulary tests (45 of 47 with only `tokenizer.model`).
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import CHAT_TEMPLATES, MAX_JSON, load_json, scratch_folder
from sllm_jax.common.foreign import foreign
from sllm_jax.common.gguf_file import is_gguf, read_headers
from sllm_jax.common.inputs import check_file, is_file, is_folder, is_there, shown
from sllm_jax.text import sentencepiece_bpe
from sllm_jax.text.gguf_tokenizer import has_tokenizer, write_tokenizer
from sllm_jax.text.tokenizer_growth import check_growth

MAX_VOCABULARY = 2**29  # bytes of a tokenizer file; the largest published ones (256,000 tokens) have about 2**25
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # the first that exists is used
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")

# BOS and EOS of a tokenizer whose files name neither: the first that is in its vocabulary.
BOS_TOKENS = ("<s>", "<|begin_of_text|>", "<|endoftext|>")
EOS_TOKENS = ("</s>", "<|end_of_text|>", "<|endoftext|>")

_ANOTHER = "choose another tokenizer (--tokenizer)"


def load_tokenizer(source: Path) -> Any:
    """The tokenizer of a folder or file; None if the folder has none.

    A folder has `tokenizer.json`, or `tokenizer.model` (SentencePiece, as with Llama 1 and 2), or `vocab.json` and
    `merges.txt` (GPT-2), and optionally the files that `transformers` writes: `tokenizer_config.json`,
    `special_tokens_map.json`, `chat_template.jinja`. A file is a `.model`, a `.json` or a `.gguf` of any name. Nothing
    is downloaded and no checkpoint code is executed. Raises `SllmError` if `source` does not exist or cannot be read.
    """
    if not is_there(source):
        raise SllmError(f"no tokenizer at {shown(source)}: expected a folder or a file that exists; check the path")
    file = _tokenizer_file(source) if is_folder(source) else source
    if file is None:
        return None
    if is_gguf(file):
        if not has_tokenizer(read_headers(file)[0]):
            return None
    else:
        check_file(file, MAX_VOCABULARY)
    for path in _settings_files(file):
        if path.suffix == ".json":
            load_json(path)
        check_file(path, MAX_JSON)
    remedy = (
        "expected the tokenizer.json of a Hugging Face tokenizer or a SentencePiece tokenizer.model; fetch the file "
        "again or choose another tokenizer"
    )
    with quiet(), foreign(str(file), remedy, "is not a tokenizer that can be read"):
        return _load(source, file)


def encode(tokenizer: Any, text: str, start: bool, control_tokens: bool = False) -> np.ndarray:
    """Token ids [N] of a text, int32.

    With `start`, they begin with the special tokens that the tokenizer adds before a text (usually BOS). Special tokens
    after the text are left out, since a stream continues. Without `start`, no special tokens are added, but a
    SentencePiece tokenizer still adds its leading space. A control token spelled in the text (`<|im_end|>`) is encoded
    as plain text, unless `control_tokens` is set. Raises `SllmError` if the text cannot be encoded.
    """
    check_unicode(text)
    with encodable():
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False, split_special_tokens=not control_tokens)
        return np.array([*(_prefix(tokenizer) if start else ()), *ids], np.int32)


def check_unicode(text: str) -> None:
    """Raises `SllmError` for a text that UTF-8 cannot encode: one with an unpaired surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SllmError(f"the text is not Unicode: {error}; give UTF-8") from error


def control_token_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of special tokens, such as BOS, EOS and those of chat templates, keyed by spelling."""
    return {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def decode_text(tokenizer: Any, ids: Sequence[SupportsIndex] | np.ndarray) -> str:
    """The text of token ids [N], without special tokens; spaces are not cleaned up."""
    ids = [int(i) for i in ids]
    with decodable():
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def encodable() -> AbstractContextManager[None]:
    """Context of every call that encodes: errors, which may depend on the text, become `SllmError`."""
    return foreign("the text", _ANOTHER, "cannot be encoded by this tokenizer")


def decodable() -> AbstractContextManager[None]:
    """Context of every call that decodes: errors become `SllmError`."""
    return foreign("the tokens", _ANOTHER, "cannot be decoded by this tokenizer")


def start_ids(tokenizer: Any) -> np.ndarray:
    """Token ids [1], int32, that start a stream without a prompt: BOS, or EOS if the tokenizer has no BOS."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return np.array([token], np.int32)
    raise SllmError(
        f"the tokenizer {tokenizer.name_or_path} has neither a BOS nor an EOS token to begin a text with; give a prompt"
    )


def _prefix(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer adds before a text."""
    encoding = tokenizer("a", add_special_tokens=True)
    sequence = encoding.sequence_ids()
    return encoding["input_ids"][: next(i for i, part in enumerate(sequence) if part is not None)]


def _tokenizer_file(folder: Path) -> Path | None:
    return next((folder / name for name in VOCABULARY_FILES if is_there(folder / name)), None)


def _settings_files(file: Path) -> list[Path]:
    """The settings files beside a tokenizer file; empty if the file does not have a standard name."""
    beside = [file.with_name(name) for name in SETTINGS_FILES] if file.name in VOCABULARY_FILES else []
    return [path for path in beside if is_there(path)]


def _load(source: Path, file: Path) -> Any:
    if file.name == "tokenizer.json":
        _check_rules(file)
        for path in (file.parent / CHAT_TEMPLATES).glob("*"):
            check_file(path, MAX_JSON)
        return _load_folder(file.parent)
    with scratch_folder() as folder:
        _write_folder(folder, file)
        tokenizer = _load_folder(folder)
    tokenizer.name_or_path = str(source)
    return tokenizer


def _check_rules(file: Path) -> None:
    """Raises `SllmError` for a tokenizer.json whose rules expand texts too much; the library checks the rest."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        check_growth(content, str(file))


def _load_folder(folder: Path) -> Any:
    """The tokenizer of a folder with a checked tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    tokenizer.backend_tokenizer.no_padding()  # a tokenizer.json may request padding to any length
    tokenizer.backend_tokenizer.no_truncation()
    _complete_special_tokens(tokenizer)
    if (adds_bos := bos_rule(_read_config(folder))) is not None:
        _set_bos(tokenizer, adds_bos)
    return tokenizer


def bos_rule(config: Mapping[str, Any]) -> bool | None:
    """Whether `tokenizer_config.json` asks for BOS before a text; None leaves it to the tokenizer's post-processor.

    `LlamaTokenizer` and `LlamaTokenizerFast` follow `add_bos_token` (absent: true, null: false) and override the
    post-processor, as in transformers 4.57, with which such models were published. transformers 5 ignores the option if
    there is a `tokenizer.json`. Raises `SllmError` for any other value.
    """
    if config.get("tokenizer_class") not in ("LlamaTokenizer", "LlamaTokenizerFast"):
        return None
    adds_bos = config.get("add_bos_token", True)
    if not isinstance(adds_bos, bool | None):
        raise SllmError(f"add_bos_token in tokenizer_config.json must be true or false; got {adds_bos!r:.80}")
    return bool(adds_bos)


def _set_bos(tokenizer: Any, adds_bos: bool) -> None:
    """Set the post-processor to add BOS before every text, if the tokenizer has one, or to add nothing."""
    from tokenizers import processors

    start = tokenizer.bos_token if adds_bos else None
    prefix, special = (f"{start} ", [(start, tokenizer.bos_token_id)]) if start else ("", [])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{prefix}$A", pair=f"{prefix}$A {prefix}$B", special_tokens=special
    )


def _write_folder(folder: Path, file: Path) -> None:
    """Convert a tokenizer file of another format to a folder with `tokenizer.json` and the settings files."""
    for path in _settings_files(file):
        shutil.copy(path, folder)
    config = _read_config(folder)
    if is_gguf(file):
        write_tokenizer(file, folder)
        _check_rules(folder / "tokenizer.json")
        return
    if file.suffix == ".model":
        backend, special = _from_sentencepiece(file, config)
        config = special | config
    elif file.name == "vocab.json":
        backend = _from_vocab_and_merges(file, config)
    else:
        _check_rules(file)
        shutil.copy(file, folder / "tokenizer.json")
        return
    check_growth(json.loads(backend.to_str()), str(file))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` without the empty special tokens of early Llama conversions."""
    file = folder / "tokenizer_config.json"
    config = load_json(file) if is_there(file) else {}
    return {key: value for key, value in config.items() if value != ""}


def _from_sentencepiece(file: Path, config: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """The SentencePiece BPE as a tokenizer of `tokenizers`, and its special tokens keyed by name.

    BOS is added before a text, as for Llama, unless the config says otherwise.
    """
    model, named = sentencepiece_bpe.read_model(file)
    backend = sentencepiece_bpe.build(model)
    if "bos_token" in named and config.get("add_bos_token", True):
        sentencepiece_bpe.add_bos(backend, *named["bos_token"])
    return backend, {"unk_token": str(model.unknown)} | {name: token for name, (token, _) in named.items()}


def _from_vocab_and_merges(vocab: Path, config: Mapping[str, Any]) -> Any:
    """The byte-level BPE of GPT-2. Other tokenizers with these files pre-tokenize differently: see the error."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    merges = vocab.with_name("merges.txt")
    name = config.get("tokenizer_class", "GPT2Tokenizer")
    if not is_file(merges) or not name.startswith("GPT2Tokenizer"):
        raise SllmError(
            f"{vocab.parent} has a vocab.json but no tokenizer.json: expected merges.txt beside it and a GPT2Tokenizer "
            f"(got {name}); save the tokenizer again with transformers, which writes a tokenizer.json"
        )
    backend = Tokenizer(BPE.from_file(str(vocab), str(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    backend.decoder = decoders.ByteLevel()
    return backend


def _complete_special_tokens(tokenizer: Any) -> None:
    """Set BOS and EOS if the tokenizer files name neither."""
    if tokenizer.bos_token is None and tokenizer.eos_token is None:
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        tokenizer.bos_token = next((token for token in BOS_TOKENS if token in special), None)
        tokenizer.eos_token = next((token for token in EOS_TOKENS if token in special), None)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log messages of the libraries; errors are still raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
