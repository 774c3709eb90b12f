"""Make tests/data/tiny-tokenizer-*: `python tests/make_tokenizers.py`. The text was written for this purpose.

`bytes` is a byte-level BPE like that of GPT-NeoX. `spm` is a SentencePiece BPE with byte fallback like that of Llama 2,
as `tokenizer.model` and, converted by `load_tokenizer`, as `tokenizer.json`.
"""

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from sllm_jax.text.tokenizer import load_tokenizer

DATA = Path(__file__).parent / "data"

TEXT = """\
A small boat left the harbour before sunrise, and nobody on the pier saw it go.
The river keeps its name while the water in it is always new.
She wrote the numbers in two columns: 1, 2, 3 on the left and 10, 20, 30 on the right.
"Where did you put the lamp?" he asked. "On the table," said his sister, "beside the old map."
Rain fell on the roof all night; in the morning the garden smelled of earth and leaves.
If you walk north for an hour, you will find a bridge, a mill and a row of tall trees.
The cat watched the door. The door did not open. The cat went on watching the door.
def add(left, right):
    return left + right
Our teacher said that every question is a good question, even the ones without an answer.
They counted the stars until they fell asleep, and in the dream the stars counted them.
There was bread, there was cheese, and there was a bottle of cold water from the well.
The train was late again, so the passengers told each other stories about other late trains.
Un café près de la gare, déjà fermé; l'été, il était ouvert toute la nuit.
Die Bäume über dem Fluß waren größer, als wir dachten.
Мы долго шли по снегу и молчали.
What the wind takes away in autumn it brings back, in another form, in spring.
"""


def make_byte_level(folder: Path) -> None:
    """GPT-NeoX: NFC, one special token, runs of spaces as added tokens that are not special."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=380,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.add_tokens(
        [AddedToken(" " * n, normalized=True) for n in (4, 3, 2)] + [AddedToken("žé", normalized=False)]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    write_config(folder, {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False, **names})


def make_sentencepiece(folder: Path) -> None:
    """Llama 2: BPE, byte fallback, a space before the text, no normalization."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        character_coverage=0.99,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    load_tokenizer(folder / "tokenizer.model").backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_config(folder, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **names})


def write_config(folder: Path, config: dict) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name, make in (("bytes", make_byte_level), ("spm", make_sentencepiece)):
        folder = DATA / f"tiny-tokenizer-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
