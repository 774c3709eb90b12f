"""A SentencePiece BPE as a tokenizer of the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from sllm_jax.common.errors import SllmError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces, in SentencePiece and in GGUF
BYTE = 6
_MAX_CUTS = 2**27  # sum of squared lengths of all pieces, which bounds the search for merges; that of Llama has 2**21


class Piece(NamedTuple):
    """One token."""

    text: str
    score: float
    kind: int


class SentencePieces(NamedTuple):
    """What a SentencePiece BPE model consists of."""

    pieces: list[Piece]  # by token id
    unknown: str | None
    byte_fallback: bool
    dummy_prefix: bool  # a space is put before every text
    remove_extra_whitespaces: bool
    charsmap: bytes  # compiled normalization rules; may be empty


def read_model(file: Path) -> tuple[SentencePieces, dict[str, tuple[str, int]]]:
    """A `tokenizer.model`, and the spelling and id of its BOS and EOS; raises `SllmError` if it is no BPE."""
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # generated code, without types
    proto = messages.ModelProto()
    proto.ParseFromString(file.read_bytes())
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    if not proto.pieces or trainer.model_type != trainer.BPE:
        raise SllmError(
            f"{file} is not a SentencePiece BPE model: expected the tokenizer.model of a Llama-like checkpoint; "
            "use a checkpoint with a tokenizer.json"
        )
    named = {"bos_token": (trainer.bos_piece, trainer.bos_id), "eos_token": (trainer.eos_piece, trainer.eos_id)}
    return SentencePieces(
        pieces=[Piece(one.piece, one.score, one.type) for one in proto.pieces],
        unknown=trainer.unk_piece,
        byte_fallback=trainer.byte_fallback,
        dummy_prefix=rules.add_dummy_prefix,
        remove_extra_whitespaces=rules.remove_extra_whitespaces,
        charsmap=rules.precompiled_charsmap,
    ), {name: (piece, number) for name, (piece, number) in named.items() if number >= 0}


def build(model: SentencePieces) -> Any:
    """The `tokenizers.Tokenizer`; raises `SllmError` if the search for merges would not end in time.

    SentencePiece merges the pair whose union has the highest score, so sorting the unions by score gives the merges.
    """
    if sum(len(piece.text) ** 2 for piece in model.pieces) > _MAX_CUTS:
        raise SllmError("its tokens are too long for SentencePiece; use another tokenizer (--tokenizer)")
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    vocab = {piece.text: i for i, piece in enumerate(model.pieces)}
    backend = Tokenizer(
        BPE(vocab, _merges(model.pieces), unk_token=model.unknown, fuse_unk=True, byte_fallback=model.byte_fallback)
    )
    backend.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind != USER_DEFINED)
            for piece in model.pieces
            if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    whitespace = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(model.charsmap)] if model.charsmap else []),
            *(whitespace if model.remove_extra_whitespaces else []),
            *([normalizers.Prepend("▁")] if model.dummy_prefix else []),
            normalizers.Replace(" ", "▁"),
        ]
    )
    strip = [decoders.Strip(content=" ", left=1)] if model.dummy_prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def add_bos(backend: Any, token: str, number: int) -> None:
    """Let the tokenizer put BOS before every text."""
    from tokenizers import processors

    backend.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, number)]
    )


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    normal = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    pairs = [
        (-score, text[:cut], text[cut:])
        for text, score in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    return [(left, right) for _, left, right in sorted(pairs, key=lambda pair: pair[0])]
