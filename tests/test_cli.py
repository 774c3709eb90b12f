"""The command line: standard output and error, exit codes, and a clear error for each kind of bad input."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from checkpoints import rewrite, tensors_of
from safetensors.torch import save_file

from sllm_jax.common.version import __version__
from sllm_jax.convert.families import published

SUMMARY = re.compile(r"(\d+) tokens(, [\d.]+ tokens/s)?, cache (\d+) of (\d+) tokens, (\d+) tokens seen")


def test_version_and_help(run):
    assert run("--version") == (0, f"sllm-jax {__version__}\n", "")
    code, out, _ = run("generate", "--help")
    assert code == 0
    for option in ("--start-size", "--recent-size", "--repetition-penalty", "--ignore-eos", "--stop", "--mode"):
        assert option in out


def test_models_in_a_pipe_are_plain_rows_with_their_options(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run("models")
    assert code == 0
    rows = [tuple(line.split("\t")) for line in out.splitlines()]
    assert rows[: len(published())] == [(model_type, *entry) for model_type, entry in published().items()]
    assert "rope_scaling: default, linear, dynamic, llama3, yarn, longrope\n" in out


def test_models_on_a_terminal_are_a_table(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "320")
    monkeypatch.setenv("FORCE_COLOR", "1")
    line = next(line for line in run("models")[1].splitlines() if f" {'gpt_neox'} " in line)
    assert published()["gpt_neox"].models in line
    assert published()["gpt_neox"].options in line


@pytest.mark.parametrize("columns", [20, 50])
def test_models_on_a_narrow_terminal_are_whole(run, monkeypatch, columns):
    """Long names are broken, not cut."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, _ = run("models")
    assert (code, "…" in out) == (0, False)


def test_python_dash_m():
    out = subprocess.run([sys.executable, "-m", "sllm_jax", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout == f"sllm-jax {__version__}\n"


def test_generate_prints_text_alone_on_standard_output(run, model):
    arguments = ("generate", "--model", model, "--prompt", "The cat", "--max-tokens", 20, "--ignore-eos", "--seed", 3)
    code, out, err = run(*arguments, "--temperature", 1)
    assert code == 0
    assert out.endswith("\n")
    assert len(out) > 10
    written, _, used, size, seen = SUMMARY.search(err).groups()
    assert (written, used, size, seen) == ("20", "24", "127", "24")
    assert run(*arguments, "--temperature", 1)[1] == out


def test_generate_reads_standard_input_and_takes_underscores(run, model):
    options = ("generate", "--model", model, "--max_tokens", 12, "--ignore_eos", "--start_size", 2, "--recent_size", 9)
    code, out, err = run(*options, "--prompt", "-", stdin="The cat\n")
    assert (code, SUMMARY.search(err)[4]) == (0, "11")
    assert out == run(*options, "--prompt", "The cat")[1]


def test_generate_without_a_prompt_begins_with_bos(run, model):
    code, _, err = run("generate", "--model", model, "--max-tokens", 7, "--ignore-eos")
    assert (code, SUMMARY.search(err)[5]) == (0, "8")


def test_generate_stops_at_a_text(run, model):
    arguments = ("generate", "--model", model, "--prompt", "The cat", "--max-tokens", 30, "--ignore-eos")
    whole = run(*arguments, "--temperature", 1)[1]
    stop = whole[8:10]
    assert run(*arguments, "--temperature", 1, "--stop", stop)[1] == whole.partition(stop)[0] + "\n"


def test_dense_mode_says_where_it_ends(run, model):
    code, _, err = run("generate", "--model", model, "--mode", "dense", "--ignore-eos")
    assert code == 0
    assert "128 tokens seen" in err
    assert "dense attention ends at the trained context of 128 tokens; --mode streaming has no limit" in err


@pytest.mark.filterwarnings("default")
def test_a_cache_beyond_the_trained_context_is_warned_of(run, model):
    _, _, err = run("generate", "--model", model, "--max-tokens", 1, "--recent-size", 200)
    assert "warning: a step attends to 205 tokens, but the model was trained on 128" in err


def test_chat_reads_messages_from_standard_input(run, model):
    code, out, err = run("chat", "--model", model, "--max-tokens", 5, stdin="Hello\n\nAnd you?\n")
    assert code == 0
    assert out.count("\n") >= 2
    assert int(SUMMARY.search(err)[1]) <= 10


def test_chat_asks_a_list_of_prompts_on_one_stream(run, model, tmp_path):
    prompts = tmp_path / "questions.jsonl"
    prompts.write_text('{"turns": ["Hello", "And you?"]}\n{"turns": ["What is a cat?"]}\n')
    code, _, err = run("chat", "--model", model, "--prompts", prompts, "--max-tokens", 4, "--recent-size", 50)
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("USER:")] == [
        "USER: Hello",
        "USER: And you?",
        "USER: What is a cat?",
    ]
    assert int(SUMMARY.search(err)[5]) > 54, "the stream was never reset"


def test_a_bundled_model_is_converted_too(run, tmp_path):
    assert run("convert", "bundled:llama", tmp_path / "ours")[0] == 0
    assert run("generate", "--model", tmp_path / "ours", "--max-tokens", 9)[1] == run("generate", "--max-tokens", 9)[1]


def test_convert_there_and_back(run, model, tmp_path):
    assert run("convert", model, tmp_path / "ours")[0] == 0
    assert run("convert", tmp_path / "ours", tmp_path / "theirs", "--to", "huggingface")[0] == 0
    for folder in ("ours", "theirs"):
        text = run("generate", "--model", tmp_path / folder, "--max-tokens", 9, "--ignore-eos")[1]
        assert text == run("generate", "--model", model, "--max-tokens", 9, "--ignore-eos")[1]


def broken(tmp_path, model, **files):
    """A copy of the tiny checkpoint with some files replaced, or removed (None)."""
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    for name, content in files.items():
        path = folder / name.replace("_json", ".json").replace("_safetensors", ".safetensors")
        path.unlink() if content is None else path.write_bytes(content)
    return folder


BAD_GENERATE = {
    "missing folder": (["--model", "./nowhere"], "folder ./nowhere not found"),
    "empty prompt": (["--prompt", ""], "the prompt is empty"),
    "negative start size": (["--start-size", "-1"], "start_size must be a non-negative integer; got -1"),
    "negative recent size": (["--recent-size", "-3"], "recent_size must be a non-negative integer; got -3"),
    "nothing kept": (["--start-size", "0", "--recent-size", "0"], "a cache of 0 tokens keeps nothing"),
    "no tokens": (["--max-tokens", "0"], "max-tokens must be 1 or more; got 0"),
    "negative temperature": (["--temperature", "-1"], "temperature must be 0"),
    "top-p of 0": (["--top-p", "0"], "top_p must be above 0"),
    "no such seed": (["--seed", "99999999999999999999"], "seed must be from 0 to 4294967295"),
    "text that is not Unicode": (["--prompt", "\udcff"], "the text is not Unicode"),
    "no such bundled model": (["--model", "bundled:nothing"], "there is no model 'bundled:nothing' in this package"),
    "unknown mode": (["--mode", "sparse"], "mode 'sparse' is not one of streaming, dense"),
    "unknown dtype": (["--dtype", "int7"], "int7"),
    "missing tokenizer": (["--tokenizer", "./nowhere"], "nowhere"),
}


def assert_refused(result, message):
    code, out, err = result
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2


@pytest.mark.parametrize(("arguments", "message"), BAD_GENERATE.values(), ids=BAD_GENERATE)
def test_generate_refuses(run, model, arguments, message):
    assert_refused(run("generate", "--model", model, "--max-tokens", 2, *arguments), message)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config_json": None}, "has no config.json"),
        ({"config_json": b"{"}, "config.json is not JSON"),
        ({"config_json": json.dumps({"model_type": "bert"}).encode()}, "model_type 'bert' is not supported"),
        ({"model_safetensors": b"\x10\0\0\0\0\0\0\0{"}, "model.safetensors"),
        ({"model_safetensors": None}, "model.safetensors"),
        ({"tokenizer_json": b"{}"}, "tokenizer.json is not a tokenizer"),
    ],
    ids=["no config", "broken config", "other family", "truncated weights", "no weights", "broken tokenizer"],
)
def test_a_broken_checkpoint_is_refused(run, model, tmp_path, files, message):
    assert_refused(run("generate", "--model", broken(tmp_path, model, **files), "--max-tokens", 2), message)


def with_tensors(tmp_path, model, change):
    """A copy of the tiny checkpoint whose tensors `change` has changed in place."""
    folder = broken(tmp_path, model)
    rewrite(folder, change)
    return folder


def change_shape(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][1:].clone()


def break_numbers(tensors):
    tensors["model.norm.weight"][3] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "missing tensor model.norm.weight of shape (28,)"),
        (lambda tensors: tensors.update(extra=torch.zeros(3)), "unknown tensor extra of shape (3,)"),
        (change_shape, "misshapen tensor model.norm.weight: expected (28,), got (27,)"),
        (break_numbers, "tensor model.norm.weight: 1 of 28 not finite"),
    ],
    ids=["missing", "extra", "misshapen", "not finite"],
)
def test_tensors_that_do_not_fit_are_refused(run, model, tmp_path, change, message):
    assert_refused(run("generate", "--model", with_tensors(tmp_path, model, change)), message)


def test_shards_that_do_not_fit_are_refused(run, model, tmp_path):
    tensors, folder = tensors_of(model), broken(tmp_path, model, model_safetensors=None)
    save_file(tensors, folder / "a.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors") | {"extra": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(run("generate", "--model", folder), "b.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, folder / "b.safetensors")
    assert_refused(run("generate", "--model", folder), "duplicate tensor model.norm.weight")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_pickle_that_would_run_code_is_refused(run, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = broken(tmp_path, model, model_safetensors=None)
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    assert_refused(run("generate", "--model", folder), "could run code")
    assert not (tmp_path / "evil").exists()


def test_the_greedy_story_of_a_trained_checkpoint(run, shared):
    folder = shared / "data/checkpoints"
    expected = json.loads((folder / "golden.json").read_text())["stories260K"]
    arguments = ("generate", "--model", folder / "stories260K-hf", "--greedy", "--dtype", "float32")
    length = len(expected["greedy_from_bos_ids"]) - 1
    assert run(*arguments, "--max-tokens", length)[1] == expected["greedy_from_bos_text"] + "\n"


@pytest.mark.parametrize("config", [{"temperature": "hot"}, {"eos_token_id": "</s>"}])
def test_generation_configs_with_other_types_are_refused(run, model, tmp_path, config):
    folder = broken(tmp_path, model, generation_config_json=json.dumps(config).encode())
    assert_refused(run("generate", "--model", folder, "--max-tokens", 2), "generation_config.json")


def test_options_are_checked_before_the_model_is_loaded(run):
    for options, message in (
        (["--max-tokens", 0], "max-tokens must be 1 or more"),
        (["--temperature", "nan"], "temperature must be 0"),
        (["--stop", ""], "a stop text is empty"),
        (["--mode", "sparse"], "mode 'sparse'"),
    ):
        for command in ("generate", "chat"):
            assert_refused(run(command, "--model", "./nowhere", *options), message)


def test_chat_and_convert_refuse(run, model, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"turns": ["a"]}\n{"turns": 7}\n')
    assert_refused(run("chat", "--model", model, "--prompts", tmp_path / "bad.jsonl"), "bad.jsonl, line 2")
    assert_refused(run("convert", model, model), "exists already")
    assert_refused(run("convert", model, tmp_path / "out", "--to", "onnx"), "--to 'onnx' is not one of")
    assert not (tmp_path / "out").exists()


def test_usage_errors_are_exit_code_2_without_a_traceback(run):
    for arguments in (["convert"], ["generate", "--no-such-option"], ["nonsense"]):
        code, _, err = run(*arguments)
        assert (code, "Traceback" in err) == (2, False)


def test_the_help_of_generate_shows_an_optional_prompt(run):
    assert "generate [OPTIONS] [PROMPT] " in run("generate", "--help")[1]
