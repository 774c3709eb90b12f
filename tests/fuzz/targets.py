"""The fuzz targets: for each reader, a function that writes a valid input, and the call that reads it.

A target is a function that fills a folder, and a function that reads it, listed in `TARGETS`. Its files are damaged one
at a time.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "data"
MODEL = DATA / "tiny-llama"


@dataclass(frozen=True)
class Target:
    """A reader: `build` fills an empty folder, `read` reads it and raises SllmError, or returns what is right."""

    build: Callable[[Path], Any]
    read: Callable[[Path], Any]
    damaged: str = "*"  # a pattern of the files that are


def _copy_model(folder: Path) -> None:
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)


def _read_config(folder: Path) -> None:
    from sllm_jax.convert import read_config

    read_config(folder, np.float32)


def _read_generation_config(folder: Path) -> None:
    from types import SimpleNamespace

    from sllm_jax.common.files import load_generation_config
    from sllm_jax.core.model import Model
    from sllm_jax.core.sampling import sampling_for
    from sllm_jax.models.generation_config import stop_strings, unsupported_keys
    from sllm_jax.streams.stream import eos_ids

    config = load_generation_config(folder)
    sampling_for(config)
    stop_strings(config)
    unsupported_keys(config)
    eos_ids(Model(None, None, {}, config), SimpleNamespace(eos_token_id=2))


def _tokenizer(kind: str) -> Target:
    def build(folder: Path) -> None:
        shutil.copytree(DATA / f"tiny-tokenizer-{kind.partition(' ')[0]}", folder, dirs_exist_ok=True)
        if kind.endswith("model"):
            (folder / "tokenizer.json").unlink()

    return Target(build, _read_tokenizer)


def _read_tokenizer(folder: Path) -> None:
    from sllm_jax.text.detokenize import Detokenizer
    from sllm_jax.text.tokenizer import encode, load_tokenizer

    tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        ids = encode(tokenizer, "The cat, and <|im_end|> 日本.", start=True)
        Detokenizer(tokenizer).add(ids)


def _build_template(folder: Path) -> None:
    shutil.copytree(DATA / "tiny-tokenizer-spm", folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}\n{% endif %}"
    )


def _read_template(folder: Path) -> None:
    from sllm_jax.text.chat import render_turn, turn_end
    from sllm_jax.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    render_turn(tokenizer, "Hello", first=True)
    turn_end(tokenizer)


@cache
def _module() -> Any:
    from sllm_jax.convert.families import module_for

    return module_for(json.loads((MODEL / "config.json").read_text()), np.float32)


def _load(folder: Path) -> None:
    from sllm_jax.convert import load_params

    load_params(folder, _module())


def _build_shards(folder: Path) -> None:
    import ml_dtypes  # noqa: F401, makes bfloat16 known to NumPy
    from safetensors.numpy import load_file, save_file

    _copy_model(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half, weight_map = len(tensors) // 2, {}
    for number, names in enumerate((list(tensors)[:half], list(tensors)[half:]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({each: tensors[each] for each in names}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(names, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _build_pickle(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    _copy_model(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _build_orbax(folder: Path) -> None:
    from sllm_jax.convert import convert

    convert(MODEL, folder / "model")


def _build_gguf(folder: Path) -> None:
    import torch
    from gguf_files import write_model
    from test_gguf_tokenizer import of_sentencepiece
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    write_model(folder / "model.gguf", model, tokenizer=of_sentencepiece(DATA / "tiny-tokenizer-spm/tokenizer.model"))


def _read_gguf(folder: Path) -> None:
    from sllm_jax.convert import load_params, read_config, read_generation_config

    file = folder / "model.gguf"
    module = read_config(file, np.float32)[1]
    read_generation_config(file)
    load_params(file, module)
    _read_tokenizer(file)


TEXTS = (np.arange(40) % 90,)


@cache
def _evaluated() -> Any:
    from sllm_jax.loading.pretrained import load

    return load(MODEL)[0]


def _evaluation(folder: Path) -> Any:
    from sllm_jax.evaluate.evaluation import Evaluation, EvaluationSettings

    return Evaluation(folder, _evaluated(), TEXTS, EvaluationSettings("streaming", 2, 10, 8), {"model": "tiny"})


def _build_resume(folder: Path) -> None:
    one = _evaluation(folder)
    next(one.steps())
    one.save()


@cache
def _right() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        one = _evaluation(Path(folder))
        list(one.steps())
        return one.nll.tobytes()


def _read_resume(folder: Path) -> None:
    right, one = _right(), _evaluation(folder)
    list(one.steps())
    assert one.nll.tobytes() == right, "a wrong number"


def _build_prompts(folder: Path) -> None:
    lines = [{"turns": ["Who is there?", "And now?"]}, {"prompt": "日本"}, {"text": "a"}]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))


def _read_prompts(folder: Path) -> None:
    from sllm_jax.text.chat import read_prompts

    read_prompts(folder / "prompts.jsonl")


def _build_text(folder: Path) -> None:
    import lzma

    (folder / "book.txt").write_text("The cat sat by the window. 日本 🙂\n" * 20)
    (folder / "book.txt.xz").write_bytes(lzma.compress(b"The cat sat by the window.\n" * 20))


def _read_text(folder: Path) -> None:
    from sllm_jax.text.long_text import tokenize_file
    from sllm_jax.text.tokenizer import load_tokenizer
    from sllm_jax.train.text import read_documents

    tokenize_file(load_tokenizer(DATA / "tiny-tokenizer-spm"), folder / "book.txt", folder / "ids")
    read_documents([folder / "book.txt.xz"])


def _build_tokens(folder: Path) -> None:
    np.save(folder / "tokens.npy", np.arange(50))


def _read_tokens(folder: Path) -> None:
    from sllm_jax.cli.perplexity import read_token_ids
    from sllm_jax.evaluate.perplexity import check_token_ids

    check_token_ids(read_token_ids(folder / "tokens.npy"), 100)


def _build_arc(folder: Path) -> None:
    choices = {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}
    hub = {"id": "1", "question": "Which?", "choices": choices, "answerKey": "B"}
    adapters = {"instruction": "Please answer the question: Which?\n\nAnswer1: a Answer2: b", "answer": "answer2"}
    (folder / "hub.json").write_text(json.dumps([hub, hub]))
    (folder / "adapters.json").write_text(json.dumps([adapters]))


def _read_arc(folder: Path) -> None:
    from sllm_jax.reproduce.arc import read_questions

    for path in sorted(folder.glob("*.json")):
        read_questions(path)


def _rows() -> list[Any]:
    from sllm_jax.train.metrics import Row

    return [Row(10, 100, 3.5, 0.1, 1e-3, 50.0), Row(20, 200, 3.4, 0.1, 1e-3, 50.0, 3.6, 1.5)]


def _build_metrics(folder: Path) -> None:
    from sllm_jax.train.metrics import write_rows

    write_rows(folder / "metrics.csv", _rows())


def _read_metrics(folder: Path) -> None:
    from sllm_jax.train.metrics import digest, read_rows

    found = read_rows(folder / "metrics.csv", 100, digest(_rows()))
    assert found in ([], _rows()), "a wrong measure"


@cache
def _program() -> Any:
    """A program, its argument, and what it gives; compiled here without the cache."""
    import jax
    import jax.numpy as jnp

    program, argument = jax.jit(lambda x: jnp.tanh(x @ x.T).sum(0)), np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    return program, argument, np.asarray(program(argument)).tobytes()


def _run_program(folder: Path) -> list[str]:
    """Compile the program with its cache in `folder`; what JAX warns of."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    program, argument, right = _program()
    options = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_persistent_cache_enable_xla_caches": "none",  # the folder would be a part of a program's key
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.clear_caches()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            assert np.asarray(program(argument)).tobytes() == right, "a wrong program"
        return [str(warning.message) for warning in heard]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _read_programs(folder: Path) -> None:
    """A damaged entry is passed over with one warning, which counts as a refusal."""
    from sllm_jax.common.errors import SllmError

    heard = _run_program(folder)
    assert len(heard) <= 1, heard
    if heard:
        raise SllmError(heard[0])


TARGETS = {
    "config": Target(_copy_model, _read_config, "config.json"),
    "generation config": Target(_copy_model, _read_generation_config, "generation_config.json"),
    "tokenizer bytes": _tokenizer("bytes"),
    "tokenizer spm": _tokenizer("spm"),
    "tokenizer spm model": _tokenizer("spm model"),
    "chat template": Target(_build_template, _read_template, "chat_template.jinja"),
    "safetensors": Target(_copy_model, _load, "model.safetensors"),
    "index": Target(_build_shards, _load, "*.index.json"),
    "pickle": Target(_build_pickle, _load, "pytorch_model.bin"),
    "gguf": Target(_build_gguf, _read_gguf),
    "orbax": Target(_build_orbax, lambda folder: _load(folder / "model"), "params/**/*"),
    "resume": Target(_build_resume, _read_resume),
    "prompts": Target(_build_prompts, _read_prompts),
    "text": Target(_build_text, _read_text),
    "tokens": Target(_build_tokens, _read_tokens),
    "arc": Target(_build_arc, _read_arc),
    "metrics": Target(_build_metrics, _read_metrics),
    "program cache": Target(_run_program, _read_programs, "*-cache"),
}
