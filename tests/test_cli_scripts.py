"""The command line in scripts: JSON, standard input, alternative spellings, completion, exit codes."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from test_cli import assert_refused

from sllm_jax.cli.app import EXIT_CODES, option_name
from sllm_jax.convert.families import published
from sllm_jax.loading.bundle import DEFAULT_MODEL, bundled_names
from sllm_jax.loading.pretrained import load
from sllm_jax.streams.stream import Stream
from sllm_jax.text.tokenizer import decode_text, encode

WRITE = ("--max-tokens", 9, "--ignore-eos", "--temperature", 1, "--seed", 3)
TEXT = "The cat sat on the mat. " * 20


def shell(command, **options):
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, **options)


def test_generate_json_is_one_object_with_text_ids_end_tokens_and_seconds(run):
    plain = run("generate", "The cat", *WRITE)[1]
    code, out, _ = run("generate", "The cat", *WRITE, "--json")
    found = json.loads(out)
    _, tokenizer = load()
    assert code == 0
    assert found["text"] + "\n" == plain
    assert decode_text(tokenizer, found["ids"]) == found["text"]
    assert (found["end_reason"], found["tokens"], len(found["ids"])) == ("length", 9, 9)
    assert (found["model"], found["prompt"]) == (DEFAULT_MODEL, "The cat")
    assert found["prompt_tokens"] == len(encode(tokenizer, "The cat", start=True))
    assert found["seconds"] > 0


def test_generate_json_has_the_ids_that_a_stop_text_leaves(run):
    options = ("The cat", "--max-tokens", 60, "--ignore-eos", "--json")
    whole = json.loads(run("generate", *options)[1])
    stop = whole["text"][40:43]
    found = json.loads(run("generate", *options, "--stop", stop)[1])
    assert found["end_reason"] == "stop"
    assert found["text"] == whole["text"].partition(stop)[0]
    assert found["ids"] == whole["ids"][: len(found["ids"])]
    assert found["text"].startswith(decode_text(load()[1], found["ids"]))
    assert found["tokens"] == len(found["ids"]) < 60


def test_generate_json_has_all_ids_of_a_long_text(run, model):
    found = json.loads(run("generate", "a", "-m", model, "--max-tokens", 700, "--ignore-eos", "--json")[1])
    assert (found["tokens"], len(found["ids"])) == (700, 700)


def test_generate_json_that_is_interrupted_has_what_was_written(run, model, monkeypatch):
    def interrupted(stream, *_, **__):
        yield from itertools.islice(whole(stream, None, (), True), 3)
        raise KeyboardInterrupt

    whole = Stream.generate
    monkeypatch.setattr(Stream, "generate", interrupted)
    code, out, _ = run("generate", "a", "-m", model, "--json")
    found = json.loads(out)
    assert (code, found["end_reason"], len(found["ids"])) == (130, None, 24)


def test_perplexity_json_has_all_texts(run, model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(TEXT if name == "a" else TEXT[:200])
    texts = [word for name in ("a", "b") for word in ("--text", tmp_path / name)]
    line = run("perplexity", "--model", model, *texts)[1].split()
    code, out, _ = run("perplexity", "--model", model, *texts, "--json")
    found = json.loads(out)
    assert (code, found["model"], found["tokens"]) == (0, str(model), int(line[3]))
    assert found["perplexity"] == pytest.approx(float(line[1]), rel=1e-5)
    assert [one["name"] for one in found["texts"]] == [str(tmp_path / name) for name in ("a", "b")]
    assert all(one["bits_per_byte"] > 0 for one in found["texts"])
    assert np.log(found["perplexity"]) == pytest.approx(found["nats_per_token"])


def test_perplexity_json_of_token_ids_has_no_bits_per_byte(run, model, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(30))
    found = json.loads(run("perplexity", "--model", model, "--tokens", tmp_path / "ids.npy", "--json")[1])
    assert (found["tokens"], found["texts"][0]["bits_per_byte"]) == (29, None)


def test_models_json_has_the_table_and_the_lists(run):
    code, out, _ = run("models", "--json")
    found = json.loads(out)
    assert code == 0
    assert [one["model_type"] for one in found["models"]] == list(published())
    assert found["bundled"] == bundled_names()


def test_benchmark_json_is_all_of_standard_output(run, model, tmp_path):
    options = ("--model", model, "--rounds", 1, "--recent-size", 12, "--out", tmp_path / "out.json", "--json")
    code, out, _ = run("benchmark", *options)
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize("given", ["cat {} |", "< {}"], ids=["pipe", "file"])
def test_perplexity_reads_standard_input(run, model, tmp_path, given):
    (tmp_path / "text").write_text(TEXT)
    command = f"{sys.executable} -m sllm_jax perplexity -m {model} --text -"
    given = given.format(tmp_path / "text")
    done = shell(f"{given} {command}" if given.endswith("|") else f"{command} {given}")
    assert done.stdout == run("perplexity", "-m", model, "--text", tmp_path / "text")[1]


def test_reproduce_reads_standard_input(model, tmp_path):
    options = "--out out --max-tokens 40 --recent-size 12"
    command = f"{sys.executable} -m sllm_jax reproduce table2 -m {model} --text - {options}"
    done = shell(command, input=TEXT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--text -" in (tmp_path / "out/table2.md").read_text()


SPELLINGS = {
    "-p and -m": ["-p", "The cat", "-m", "MODEL"],
    "a positional prompt": ["--model", "MODEL", "The cat"],
    "standard input": ["--model", "MODEL", "-"],
    "--max-new-tokens": ["-p", "The cat", "-m", "MODEL", "--max-new-tokens", "9"],
    "--max_new_tokens": ["-p", "The cat", "-m", "MODEL", "--max_new_tokens", "9"],
    "--temp": ["-p", "The cat", "-m", "MODEL", "--temp", "1"],
}


@pytest.mark.parametrize("arguments", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_that_people_know(run, model, arguments):
    expected = run("generate", "--model", model, "--prompt", "The cat", *WRITE)
    arguments = [str(model) if word == "MODEL" else word for word in arguments]
    assert run("generate", *WRITE, *arguments, stdin="The cat\n")[:2] == expected[:2]


def test_no_other_option_has_another_name():
    names = ["max-tokens", "temperature", "template", "start-size", "p", "m"]
    assert [option_name(name) for name in names] == names


def test_two_prompts_are_refused(run, model):
    assert_refused(run("generate", "--model", model, "a", "--prompt", "b"), "got both PROMPT and --prompt")


@pytest.mark.parametrize(("words", "completed"), [("gen", ["generate"]), ("chat --model ", bundled_names())])
def test_shells_complete_commands_and_models(words, completed):
    environment = {"_SLLM_JAX_COMPLETE": "complete_bash", "COMP_WORDS": f"sllm-jax {words}"}
    environment["COMP_CWORD"] = str(len(f"sllm-jax {words}".split(" ")) - 1)
    program = "import sys; sys.argv = ['sllm-jax']; from sllm_jax.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True)
    assert done.stdout.split() == completed


def test_completion_can_be_installed(run):
    assert "--install-completion" in run("--help")[1]


def test_exit_codes_are_documented(run):
    out = " ".join(run("--help")[1].split())
    assert EXIT_CODES in out
    assert [code for code in ("0", "1", "2", "130", "143") if f" {code} " not in EXIT_CODES] == []


def test_a_control_token_is_plain_text_unless_the_option_lets_it_through(run, tmp_path):
    text = "one <|endoftext|> two"
    plain, control = (
        json.loads(run("generate", text, "--max-tokens", 1, "--json", *more)[1])["prompt_tokens"]
        for more in ((), ("--control-tokens",))
    )
    (tmp_path / "text").write_text(text)
    counts = [
        json.loads(run("perplexity", "--text", tmp_path / "text", "--json", *more)[1])["tokens"]
        for more in ((), ("--control-tokens",))
    ]
    assert plain > control
    assert counts[0] > counts[1]
