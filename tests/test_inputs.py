"""Pipes, devices, sockets, folders, impossible names and sizes, at every reader of a path."""

import json
import lzma
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_resume_damage import begin
from training import settings_of, write_text

import sllm_jax
from sllm_jax.cli.perplexity import read_token_ids
from sllm_jax.common import inputs
from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import (
    check_absent,
    check_writable,
    existing_folder,
    load_config,
    load_json,
    new_file,
    new_folder,
)
from sllm_jax.convert import convert, sources
from sllm_jax.core import memory
from sllm_jax.loading import hub
from sllm_jax.reproduce import page
from sllm_jax.reproduce.arc import read_questions
from sllm_jax.text import long_text
from sllm_jax.text.chat import read_prompts
from sllm_jax.text.long_text import file_blocks, read_text
from sllm_jax.text.tokenizer import load_tokenizer
from sllm_jax.train.metrics import read_rows
from sllm_jax.train.preparation import check_same, prepare
from sllm_jax.train.run import TrainingRun
from sllm_jax.train.text import read_documents

MODEL = Path(__file__).parent / "data" / "tiny-llama"
LONG = "x" * 5000


@pytest.fixture(autouse=True)
def no_waiting():
    """Waiting for a pipe ends with an error."""

    def fail(*_):
        raise AssertionError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture(
    params=["socket", "device", "looping link", "long name", "long name below", "zero in the name", "nothing"]
)
def no_input(request, tmp_path, monkeypatch):
    """A path at which there is nothing that can be read."""
    match request.param:
        case "socket":
            monkeypatch.chdir(tmp_path)  # the address of a socket is short
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("socket.json")
            return tmp_path / "socket.json"
        case "device":
            return Path("/dev/zero")
        case "looping link":
            (tmp_path / "loop.json").symlink_to("loop.json")
            return tmp_path / "loop.json"
        case "long name":
            return tmp_path / LONG
        case "long name below":
            return tmp_path / LONG / "a.json"
        case "zero in the name":
            return tmp_path / "a\0.json"
        case _:
            return tmp_path / "nothing.json"


OF_SOURCES = {
    "prompts": read_prompts,
    "questions": read_questions,
    "text": lambda path: next(file_blocks(path)),
    "whole text": read_text,
    "tokens": read_token_ids,
}
OF_FILES = {
    "texts to learn from": lambda path: read_documents([path]),
    "JSON": load_json,
    "tokenizer": load_tokenizer,
    "model": hub.resolve,
    "tokenizer of a model": lambda path: sllm_jax.load(MODEL, "float32", tokenizer=path),
    "folder": existing_folder,
    "config": load_config,
}
READERS = OF_SOURCES | OF_FILES


def refused(reader, path):
    with pytest.raises(SllmError) as error:
        reader(path)
    message = str(error.value)
    assert len(message) < 900
    assert "\n" not in message
    return message


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_no_input_is_refused_in_a_sentence(reader, no_input):
    refused(reader, no_input)


@pytest.mark.parametrize("name", [*OF_SOURCES, "texts to learn from", "JSON"])
def test_a_folder_is_no_file(tmp_path, name):
    assert "is a folder" in refused(READERS[name], tmp_path)


@pytest.mark.parametrize("name", OF_FILES)
def test_a_pipe_is_no_file_of_a_checkpoint_or_a_run(pipe, name):
    refused(OF_FILES[name], pipe)


@pytest.mark.parametrize("name", OF_SOURCES)
def test_a_pipe_is_a_text(tmp_path, pipe, name):
    path = tmp_path / "file"
    match name:
        case "prompts":
            path.write_text('{"text": "a"}\n')
        case "questions":
            path.write_text(
                json.dumps({"question": "?", "choices": {"text": ["a", "b"], "label": "AB"}, "answerKey": "B"})
            )
        case "tokens":
            with path.open("wb") as file:
                np.save(file, np.arange(9))
        case _:
            path.write_text("The cat sat.")
    expected = OF_SOURCES[name](path)
    with subprocess.Popen(["sh", "-c", f"cat {path} > {pipe}"]):
        assert np.array_equal(OF_SOURCES[name](pipe), expected)


def test_standard_input_of_any_kind_is_a_text(tmp_path):
    (tmp_path / "a").write_text("a text")
    program = (
        "from pathlib import Path; from sllm_jax.text.long_text import read_text; print(read_text(Path('/dev/stdin')))"
    )
    for command in ("{} < a", "cat a | {}"):
        called = command.format(f'"{sys.executable}" -c "{program}"')
        assert subprocess.check_output(["sh", "-c", called], cwd=tmp_path, text=True) == "a text\n"


def into_pipe(path):
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)


OF_A_CHECKPOINT = (
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "additional_chat_templates/tool_use.jinja"),
)


@pytest.mark.parametrize("name", OF_A_CHECKPOINT)
def test_a_pipe_in_a_checkpoint(tmp_path, name):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    into_pipe(folder / name)
    assert f"{name} is a pipe, not a file" in refused(lambda path: sllm_jax.load(path, "float32"), folder)


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", LONG, f"{LONG}.safetensors", "a\0b"])
def test_a_shard_that_is_no_file(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    if len(name) < 100 and "\0" not in name:
        os.mkfifo(tmp_path / name)
    assert "names missing files" in refused(sources.shards, index)


def test_a_pipe_in_a_converted_checkpoint(tmp_path):
    convert(MODEL, tmp_path / "whole")
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole/params").rglob("*") if path.is_file()]
    for name in sorted(names)[:4]:
        folder = shutil.copytree(tmp_path / "whole", tmp_path / "model", dirs_exist_ok=True)
        into_pipe(folder / name)
        assert f"{name} is a pipe" in refused(lambda path: sllm_jax.load(path, "float32"), folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["settings.json", "nll.npy", "a checkpoint"])
def test_a_pipe_in_a_folder_to_resume_from(tmp_path, tiny, name):
    one = begin(tmp_path / "resume", tiny)
    next(one.steps())
    one.save()
    path = tmp_path / "resume" / name
    if name == "a checkpoint":
        path = next(found for found in path.with_name("checkpoints").rglob("*") if found.is_file())
    into_pipe(path)
    refused(lambda folder: begin(folder, tiny), tmp_path / "resume")


@pytest.mark.parametrize("name", ["settings.json", "learned.npy", "held_back.npy", "held_back.txt", "metrics.csv"])
def test_a_pipe_in_a_run_to_go_on_with(tmp_path, name):
    texts, settings = [write_text(tmp_path)], settings_of()
    prepare(tmp_path / "run", texts, settings)
    into_pipe(tmp_path / "run" / name)

    def go_on(folder):
        check_same(folder, texts, settings)
        TrainingRun(folder, settings, save_every=6)

    assert name in refused(go_on, tmp_path / "run")


def test_measures_of_a_run_that_are_a_folder(tmp_path):
    assert "is not a file" in refused(lambda path: read_rows(path, 10, np.zeros(32, np.uint8)), tmp_path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"mine"])
def test_a_page_that_is_no_report(tmp_path, content):
    into_pipe(tmp_path / "README.md")
    if content is not None:
        (tmp_path / "README.md").unlink()
        (tmp_path / "README.md").write_bytes(content)
    refused(lambda folder: page.check_folder(folder, []), tmp_path)


@pytest.mark.parametrize("name", [LONG, f"{LONG}/a", "loop/a"])
@pytest.mark.parametrize("write", [new_file, new_folder])
def test_a_name_that_nothing_can_have_is_not_written_to(tmp_path, name, write):
    (tmp_path / "loop").symlink_to("loop")

    def attempt(path):
        with write(path):
            pass

    refused(attempt, tmp_path / name)


@pytest.mark.parametrize("name", [LONG, f"{LONG}/a", "x" * 250, "loop/a", "file/a"])
@pytest.mark.parametrize("check", [check_absent, check_writable])
def test_a_name_that_nothing_can_have_is_refused_before_the_work_begins(tmp_path, name, check):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert "could not be written" in refused(check, tmp_path / name)


def test_commands_with_impossible_names(run, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    np.save(tmp_path / "tokens.npy", np.arange(9))
    tokens = ("perplexity", "--model", MODEL, "--tokens", tmp_path / "tokens.npy")
    for arguments in (
        ("generate", "--model", LONG),
        ("generate", "--model", MODEL, "--tokenizer", f"./{LONG}"),
        ("chat", "--prompts", LONG),
        ("perplexity", "--text", LONG),
        ("perplexity", "--text", "/dev/zero"),
        (*tokens, "--nll-out", tmp_path / "loop/a"),
        (*tokens, "--nll-out", LONG),
        (*tokens, "--resume", LONG),
        ("train", LONG, "--config", MODEL / "config.json", "--out", tmp_path / "out"),
        ("train", tmp_path / "tokens.npy", "--config", LONG, "--out", tmp_path / "out"),
        ("train", tmp_path / "tokens.npy", "--config", MODEL / "config.json", "--out", LONG),
        ("benchmark", "--config", LONG),
        ("reproduce", "streamqa", "--questions", LONG, "--out", tmp_path / "out"),
        ("reproduce", "fig2", "--text", LONG, "--out", LONG),
        ("convert", LONG, LONG),
        ("convert", MODEL, LONG),
    ):
        code, _, err = run(*arguments)
        assert code == 2, arguments
        assert "Traceback" not in err
        assert len(err) < 2000, arguments


SMALL = 1000


@pytest.mark.parametrize("name", ["prompts", "questions"])
@pytest.mark.parametrize("piped", [False, True])
def test_what_is_read_whole_has_a_bound(tmp_path, pipe, monkeypatch, name, piped):
    monkeypatch.setattr(inputs, "MAX_WHOLE", SMALL)
    monkeypatch.setattr(inputs, "_PIECE", 100)
    (tmp_path / "file").write_bytes(b" " * (SMALL + 1))
    command = f"cat {tmp_path / 'file'} > {pipe}" if piped else "true"
    with subprocess.Popen(["sh", "-c", command], stderr=subprocess.DEVNULL):
        found = refused(READERS[name], pipe if piped else tmp_path / "file")
    assert f"has more than {SMALL} bytes" in found


def test_a_text_that_is_read_whole_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(long_text, "MAX_TEXT", SMALL)
    (tmp_path / "text").write_text("a" * (SMALL + 1))
    assert f"has more than {SMALL} characters; give a part of it" in refused(read_text, tmp_path / "text")


def test_a_prompt_from_standard_input_has_a_bound(run, monkeypatch):
    monkeypatch.setattr("sllm_jax.cli.stdin.MAX_WHOLE", SMALL)
    for arguments in (("generate", "-"), ("chat",)):
        code, _, err = run(*arguments, "--model", MODEL, "--max-tokens", 1, stdin="a" * (SMALL + 1))
        assert (code, f"standard input has more than {SMALL} bytes" in err) == (2, True), err


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_of_a_checkpoint_that_is_far_too_large(tmp_path, name):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    (folder / name).touch()
    os.truncate(folder / name, 2**40)  # takes no space
    message = refused(lambda path: sllm_jax.load(path, "float32"), folder)
    assert f"{name} has {2**40} bytes; expected at most" in message


def test_texts_to_learn_from_that_memory_cannot_hold(tmp_path, monkeypatch):
    (tmp_path / "text.txt").touch()
    os.truncate(tmp_path / "text.txt", 2**40)
    monkeypatch.setattr(memory, "free_memory", lambda: 2**39)
    assert "reading these texts takes" in refused(lambda path: read_documents([path]), tmp_path / "text.txt")


@pytest.mark.parametrize("count", [1, 3])
def test_a_compressed_text_that_explodes(tmp_path, count):
    compressor = lzma.LZMACompressor()
    content = b"".join([*(compressor.compress(bytes(2**20)) for _ in range(128)), compressor.flush()])
    (tmp_path / "bomb.xz").write_bytes(content * count)
    assert "is more than 100 times as large" in refused(lambda path: read_documents([path]), tmp_path / "bomb.xz")


@pytest.mark.parametrize("text", ["[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, "[" * 100_000])
def test_deeply_nested_json_is_refused(tmp_path, text):
    (tmp_path / "deep.json").write_text(text if text.startswith("{") else f'{{"a": {text}}}')
    for reader in (load_json, read_prompts, read_questions, load_tokenizer):
        refused(reader, tmp_path / "deep.json")
