"""Tiny training runs shared by tests."""

import random
from pathlib import Path

from sllm_jax.train.preparation import prepare
from sllm_jax.train.run import TrainingRun
from sllm_jax.train.settings import TrainingSettings

CONFIG = {  # all sizes differ
    "model_type": "llama",
    "vocab_size": 290,
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 1,  # a second one doubles the time to compile
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}
SENTENCE = "the cat sat on a mat and saw the rain over old hills while small birds sang of winter, far away."


def documents(count: int = 5, words: int = 150) -> list[str]:
    """Texts of random order, the same at every call."""
    drawn = random.Random(0)
    return [" ".join(drawn.choices(SENTENCE.split(), k=words)) for _ in range(count)]


def write_text(folder: Path, **sizes: int) -> Path:
    path = folder / "text.txt"
    path.write_text("\f".join(documents(**sizes)))
    return path


def settings_of(**changes) -> TrainingSettings:
    small = {"steps": 12, "batch_size": 4, "warmup_steps": 2, "learning_rate": 1e-2}
    return TrainingSettings(**{"config": CONFIG} | small | changes)


def prepared(folder: Path, save_every: int = 5, **changes) -> TrainingRun:
    """A run in the new folder `folder`/run, before its first step."""
    settings = settings_of(**changes)
    prepare(folder / "run", [write_text(folder)], settings)
    return TrainingRun(folder / "run", settings, save_every)


def done(run: TrainingRun) -> TrainingRun:
    """All its steps done."""
    for _ in run.steps():
        pass
    return run
