"""Training a byte-level BPE tokenizer on the training text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import load_json, write_json
from sllm_jax.text.tokenizer import quiet

END_OF_TEXT, SINK_TOKEN = "<|endoftext|>", "<|sink|>"
_BYTES = 256
_MACHINE_SPECIFIC = ("backend", "is_local", "local_files_only")  # entries of the config that transformers writes


def train_tokenizer(documents: Sequence[str], vocab_size: int, sink: str, context: int) -> Any:
    """A `PreTrainedTokenizerFast` of exactly `vocab_size` tokens, whose vocabulary does not depend on the sink.

    With a learnable sink, it adds `<|sink|>` before every text; otherwise it adds no special tokens. Raises `SllmError`
    if the text is too small for the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    with quiet():
        from transformers import PreTrainedTokenizerFast

    if vocab_size < _BYTES + 2:
        raise SllmError(f"vocab_size must be {_BYTES + 2} or more (all bytes and two special tokens); got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, SINK_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for document in documents for line in document.split("\n")), trainer)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise SllmError(
            f"the text is too small for a vocabulary of {vocab_size}: it has {found} tokens; give more text"
        )
    if sink == "learnable":
        sink_id = tokenizer.token_to_id(SINK_TOKEN)
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{SINK_TOKEN} $A", special_tokens=[(SINK_TOKEN, sink_id)]
        )
    start = SINK_TOKEN if sink == "learnable" else END_OF_TEXT
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files of a tokenizer. Raises `SllmError` on failure."""
    try:
        tokenizer.save_pretrained(folder)
        config = load_json(folder / "tokenizer_config.json")
        kept = {name: value for name, value in config.items() if name not in _MACHINE_SPECIFIC}
        write_json(folder / "tokenizer_config.json", kept | {"tokenizer_class": "PreTrainedTokenizerFast"})
    except Exception as error:  # tokenizers raises plain `Exception` on a full disk
        raise SllmError(f"the tokenizer could not be written: {error}") from error
