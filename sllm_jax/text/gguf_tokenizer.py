"""The tokenizer in the metadata of a GGUF file, as the files of a Hugging Face tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.gguf_file import Header, read_headers
from sllm_jax.text.sentencepiece_bpe import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Piece, SentencePieces, add_bos, build

_PREFIX = "tokenizer.ggml."
_ANOTHER = "give the tokenizer of the original checkpoint (--tokenizer)"
_NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"  # Tekken cuts before capitals
_CASED = rf"{_CASED}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+|{_CASED}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*"


class Cut(NamedTuple):
    """How a text is cut into words before BPE: by each pattern in turn."""

    patterns: tuple[str, ...]
    normalized: bool = False  # to NFC
    whole_words: bool = False  # a word that is a token is not made by merges (`ignore_merges`)
    adds_bos: bool = False  # where the file does not say


_CUTS = {  # by the names that llama.cpp has for them
    **dict.fromkeys(("gpt-2", "phi-2", "jais"), Cut((_GPT2,))),
    **dict.fromkeys(("mpt", "olmo"), Cut((_GPT2,), normalized=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), Cut((r"\p{N}", _GPT2))),
    "falcon": Cut((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3"),
        Cut((_WORDS + r"\p{N}{1,3}" + _REST,), whole_words=True, adds_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Cut((_WORDS + r"\p{N}{1,3}" + _REST,))),
    "qwen2": Cut((_WORDS + r"\p{N}" + _REST,), normalized=True),
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen"), Cut((_WORDS + r"\p{N}" + _REST,))),
    "tekken": Cut(
        (_CASED + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",), whole_words=True, adds_bos=True
    ),
}
_OF_ARCHITECTURE = {"gptneox": "olmo", "falcon": "falcon", "mpt": "mpt", "qwen2": "qwen2", "qwen3": "qwen2"}


def has_tokenizer(header: Header) -> bool:
    """Whether the file has a vocabulary."""
    return f"{_PREFIX}tokens" in header.metadata and header.metadata.get(f"{_PREFIX}model") not in (None, "none")


def write_tokenizer(file: Path, folder: Path) -> bool:
    """Write `tokenizer.json` and `tokenizer_config.json`; False, and nothing written, if the file has no tokenizer.

    Raises `SllmError` for a tokenizer that is damaged, or of a kind that is not supported.
    """
    header = read_headers(file)[0]
    if not has_tokenizer(header):
        return False
    kind = header.get(f"{_PREFIX}model", str)
    if kind not in ("llama", "gpt2"):
        raise SllmError(f"{file}: the tokenizer {kind!r:.80} is not supported; known are llama and gpt2; {_ANOTHER}")
    pieces = _pieces(header, has_scores=kind == "llama")
    named = _named(header, pieces)
    if kind == "llama":
        backend, adds_bos = build(_sentencepieces(header, pieces, named)), True
    else:
        cut = _cut(header)
        backend, adds_bos = _byte_level(header, pieces, cut), cut.adds_bos
    if header.get(f"{_PREFIX}add_bos_token", np.bool_, adds_bos) and "bos_token" in named:
        add_bos(backend, pieces[named["bos_token"]].text, named["bos_token"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {name: pieces[number].text for name, number in named.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | _templates(header)), encoding="utf-8")
    return True


def _pieces(header: Header, has_scores: bool) -> list[Piece]:
    """The tokens by id; raises `SllmError` for lists of different length, and for tokens that stand twice.

    A byte-level BPE has merges instead of scores, which are 0 then.
    """
    texts = header.get(f"{_PREFIX}tokens", list)
    nothing = np.zeros(0)
    scores = header.get(f"{_PREFIX}scores", np.ndarray, nothing) if has_scores else np.zeros(len(texts))
    kinds = header.get(f"{_PREFIX}token_type", np.ndarray, nothing)
    if not len(texts) == len(scores) == len(kinds) or not all(isinstance(text, str) for text in texts):
        raise SllmError(
            f"{header.path}: expected a text, a score and a type for each token; got {len(texts)} texts, {len(scores)} "
            f"scores and {len(kinds)} types"
        )
    if len(set(texts)) != len(texts):
        raise SllmError(f"{header.path}: a token stands twice in its vocabulary; {_ANOTHER}")
    return [Piece(*one) for one in zip(texts, scores.tolist(), kinds.tolist(), strict=True)]


def _named(header: Header, pieces: list[Piece]) -> dict[str, int]:
    """The ids of BOS, EOS and so on, by Hugging Face's names; raises `SllmError` for an id outside the vocabulary."""
    found = {}
    for theirs, ours in _NAMED.items():
        number = header.get(f"{_PREFIX}{theirs}_token_id", np.integer)
        if number is None or number >= 2**31:  # 2**32 - 1 stands for none
            continue
        if not 0 <= number < len(pieces):
            raise SllmError(f"{header.path}: {theirs}_token_id {number} is outside the {len(pieces)} tokens")
        found[ours] = int(number)
    return found


def _sentencepieces(header: Header, pieces: list[Piece], named: dict[str, int]) -> SentencePieces:
    charsmap = header.get(f"{_PREFIX}precompiled_charsmap", np.ndarray)
    unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
    return SentencePieces(
        pieces,
        pieces[named["unk_token"]].text if "unk_token" in named else unknown,
        byte_fallback=any(piece.kind == BYTE for piece in pieces),
        dummy_prefix=bool(header.get(f"{_PREFIX}add_space_prefix", np.bool_, True)),
        remove_extra_whitespaces=bool(header.get(f"{_PREFIX}remove_extra_whitespaces", np.bool_, False)),
        charsmap=b"" if charsmap is None else charsmap.astype(np.uint8).tobytes(),
    )


def _cut(header: Header) -> Cut:
    """How words are cut; raises `SllmError` for a name that is not known."""
    architecture = header.get("general.architecture", str, "")
    name = header.get(f"{_PREFIX}pre", str, _OF_ARCHITECTURE.get(architecture))
    if name == "default":
        name = _OF_ARCHITECTURE.get(architecture, name)
    if name not in _CUTS:
        what = "names no pre-tokenizer" if name is None else f"has the pre-tokenizer {name!r:.80}, which is not known"
        raise SllmError(f"{header.path} {what}; known are {', '.join(_CUTS)}; {_ANOTHER}")
    return _CUTS[name]


def _byte_level(header: Header, pieces: list[Piece], cut: Cut) -> Any:
    """The byte-level BPE of GPT-2 and later models; raises `SllmError` for merges that are damaged."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    texts = header.get(f"{_PREFIX}merges", list, [])
    merges = [(left, right) for left, _, right in (str(merge).partition(" ") for merge in texts)]
    if not merges or not all(left and right and " " not in right for left, right in merges):
        raise SllmError(f"{header.path}: expected merges of two tokens each; fetch it again")
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(BPE(vocab, merges, ignore_merges=cut.whole_words))
    backend.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind != USER_DEFINED)
            for piece in pieces
            if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    if cut.normalized:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _templates(header: Header) -> dict[str, Any]:
    """The chat template, or a list of several with their names."""
    template = header.get("tokenizer.chat_template", str)
    names = [name for name in header.get("tokenizer.chat_templates", list, []) if isinstance(name, str)]
    others = {name: header.get(f"tokenizer.chat_template.{name}", str) for name in names}
    if any(others.values()):
        listed = {"default": template} | others
        return {"chat_template": [{"name": name, "template": text} for name, text in listed.items() if text]}
    return {} if template is None else {"chat_template": template}
