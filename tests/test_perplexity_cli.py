"""`perplexity` on the command line: one or several texts, interrupted and resumed, and bad input."""

import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest
from test_cli import assert_refused

from sllm_jax.evaluate.evaluation import Evaluation
from sllm_jax.text.tokenizer import decode_text, encode, load_tokenizer


@pytest.mark.parametrize("mode", ["streaming", "window", "dense", "recompute"])
def test_perplexity_of_tokens_and_of_text(run, model, tmp_path, mode):
    tokens = np.random.default_rng(0).integers(3, 420, 60)
    np.save(tmp_path / "tokens.npy", tokens)
    nll_out = tmp_path / "nll.npy"
    arguments = ("--model", model, "--mode", mode, "--recent-size", 20, "--chunk-size", 7)
    code, out, _ = run("perplexity", *arguments, "--tokens", tmp_path / "tokens.npy", "--nll-out", nll_out)
    nll = np.load(nll_out)
    assert code == 0
    assert (nll.dtype, nll.shape) == (np.float32, (59,))
    assert out == f"perplexity {np.exp(nll.mean(dtype=np.float64)):.6g} over 59 tokens\n"
    text = tmp_path / "text.txt"
    text.write_text("The cat sat by the window and saw the rain. " * 3)
    _, out, err = run("perplexity", *arguments, "--text", text, "--max-tokens", 25, "--nll-out", nll_out)
    assert re.fullmatch(r"perplexity [\d.e+]+ over 25 tokens\n", out)
    tokenizer = load_tokenizer(model)
    predicted = decode_text(tokenizer, encode(tokenizer, text.read_text(), start=True)[1:26])
    bits = np.load(nll_out).sum() / np.log(2) / len(predicted.encode())
    assert float(re.search(r"([\d.]+) bits per byte\n", err)[1]) == pytest.approx(bits, abs=1e-4)


def test_several_texts_are_measured_side_by_side(run, model, tmp_path):
    arguments, curve = ("--model", model, "--recent-size", 20), tmp_path / "curve.csv"
    for name, copies in (("a.txt", 5), ("b.txt", 2)):
        (tmp_path / name).write_text("The cat sat by the window and saw the rain. " * copies)
    texts = ["--text", tmp_path / "a.txt", "--text", tmp_path / "b.txt"]
    code, out, err = run("perplexity", *arguments, *texts, "--nll-out", tmp_path / "nll.npy", "--curve-out", curve)
    assert code == 0
    alone = []
    for i, path in enumerate(texts[1::2]):
        _, _, bits = run("perplexity", *arguments, "--text", path, "--nll-out", tmp_path / f"{i}.npy")
        alone.append(np.load(tmp_path / f"{i}.npy"))
        found = re.search(rf"{re.escape(str(path))}: perplexity (\S+) over {len(alone[i])} tokens, (\S+) bits per", err)
        assert float(found[1]) == pytest.approx(np.exp(alone[i].mean(dtype=np.float64)), rel=1e-5)
        assert float(found[2]) == pytest.approx(float(bits.split()[0]), abs=1e-3)
    both = np.concatenate(alone)
    np.testing.assert_allclose(np.load(tmp_path / "nll.npy"), both, atol=1e-5)
    assert re.fullmatch(rf"perplexity ([\d.]+) over {len(both)} tokens\n", out)
    assert float(out.split()[1]) == pytest.approx(np.exp(both.mean(dtype=np.float64)), rel=1e-5)
    lines = curve.read_text().splitlines()
    assert lines[0] == "text,tokens,log_perplexity,log_perplexity_since_last_row,past_trained_context"
    assert len(lines) == 1 + len(both)
    name, count, mean, *_ = lines[-1].split(",")
    assert (name, int(count)) == (str(tmp_path / "b.txt"), len(alone[1]))
    assert float(mean) == pytest.approx(alone[1].mean(dtype=np.float64), abs=1e-5)


def test_dense_past_the_trained_context_is_labelled(run, model, tmp_path):
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(3, 420, 200))
    arguments = ("--model", model, "--mode", "dense", "--tokens", tmp_path / "tokens.npy")
    _, _, err = run("perplexity", *arguments, "--nll-out", tmp_path / "nll.npy")
    nll = np.load(tmp_path / "nll.npy")
    assert err.splitlines()[0] == "dense attention over 199 tokens exceeds the trained context of 128"
    within, past = (f"{np.exp(part.mean()):.6g}" for part in (nll[:128], nll[128:]))
    assert err.splitlines()[1] == f"within the trained context of 128 tokens: perplexity {within}; past it: {past}"


def test_an_interrupted_perplexity_is_gone_on_with(run, model, tmp_path, monkeypatch):
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(3, 420, 100))
    arguments = ("--model", model, "--recent-size", 20, "--chunk-size", 7, "--tokens", tmp_path / "tokens.npy")
    arguments += ("--nll-out", tmp_path / "nll.npy")
    assert run("perplexity", *arguments)[0] == 0
    whole = (tmp_path / "nll.npy").read_bytes()
    (tmp_path / "nll.npy").unlink()
    steps, signals = Evaluation.steps, iter([signal.SIGINT, signal.SIGINT, signal.SIGTERM])

    def interrupted_at_the_fourth(evaluation):
        for i, found in enumerate(steps(evaluation)):
            if i == 3:
                signal.raise_signal(next(signals))
            yield found

    monkeypatch.setattr(Evaluation, "steps", interrupted_at_the_fourth)
    resume = ("--resume", tmp_path / "kept")
    assert run("perplexity", *arguments)[0] == 130
    assert not (tmp_path / "nll.npy").exists()
    assert run("perplexity", *arguments, *resume)[0] == 130
    assert run("perplexity", *arguments, *resume)[0] == 143
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["checkpoints", "nll.npy", "settings.json"]
    assert_refused(run("perplexity", *arguments, *resume, "--mode", "window"), "holds another evaluation (different")
    monkeypatch.setattr(Evaluation, "steps", steps)
    begun = count_steps(monkeypatch)
    assert run("perplexity", *arguments, *resume)[0] == 0
    assert begun[0] > 4 * 7
    assert (tmp_path / "nll.npy").read_bytes() == whole
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("name", ["precious.txt", "nll.npy"])
def test_only_its_own_is_removed_from_the_folder_it_resumes_in(run, model, tmp_path, name):
    np.save(tmp_path / "tokens.npy", np.arange(30))
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / name).write_text("mine")
    arguments = ("perplexity", "--model", model, "--tokens", tmp_path / "tokens.npy", "--resume", kept)
    assert_refused(run(*arguments), "holds something other than an evaluation; name a new folder")
    assert (kept / name).read_text() == "mine"
    (kept / name).unlink()
    assert run(*arguments)[0] == 0
    assert not kept.exists()


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_a_pipe_is_read_once_and_whole(run, model, tmp_path, kind):
    content = "The cat sat by the window and saw the rain. " * 30
    (tmp_path / "text").write_text(content)
    np.save(tmp_path / "tokens.npy", np.arange(90))
    path = tmp_path / {"text": "text", "tokens": "tokens.npy"}[kind]
    os.mkfifo(tmp_path / "pipe")
    expected = run("perplexity", "--model", model, f"--{kind}", path)[1]
    with subprocess.Popen(["sh", "-c", f"cat {path} > {tmp_path / 'pipe'}"]):
        assert run("perplexity", "--model", model, f"--{kind}", tmp_path / "pipe")[1] == expected


def count_steps(monkeypatch):
    """A list that will hold the tokens done after each step."""
    steps, done = Evaluation.steps, []

    def noted(self):
        for step in steps(self):
            done.append(step[0])
            yield step

    monkeypatch.setattr(Evaluation, "steps", noted)
    return done


def test_perplexity_of_tokens_needs_no_tokenizer(run, model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    np.save(tmp_path / "tokens.npy", np.arange(30))
    assert run("perplexity", "--model", bare, "--tokens", tmp_path / "tokens.npy")[0] == 0
    code, _, err = run("generate", "--model", bare, "--max-tokens", 3)
    assert (code, "needs a tokenizer" in err) == (2, True)
    assert run("generate", "--model", bare, "--max-tokens", 3, "--tokenizer", model / "tokenizer.json")[0] == 0


def test_perplexity_refuses(run, model, tmp_path):
    def refuses(message, *arguments):
        assert_refused(run("perplexity", "--model", model, *arguments), message)

    def saved(array):
        np.save(tmp_path / "bad.npy", array)
        return "--tokens", tmp_path / "bad.npy"

    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "not.npy").write_text("1 2 3")
    refuses("give either --text FILE or --tokens FILE.npy")
    refuses("empty.txt is empty", "--text", tmp_path / "empty.txt")
    refuses("latin.txt is not UTF-8 text", "--text", tmp_path / "latin.txt")
    refuses("none.txt cannot be read (No such file", "--text", tmp_path / "none.txt")
    refuses("is not a .npy file of numbers", "--tokens", tmp_path / "not.npy")
    refuses("is not a .npy file of numbers", *saved(np.array([{"a": 1}], object)))
    refuses("token id 420 at index 1 is outside the vocabulary of 420", *saved(np.array([5, 420])))
    refuses("must be one row of integers", *saved(np.array([1.5, 2.5])))
    refuses("needs 2 tokens or more; got 1", *saved(np.array([5])))
    refuses("must be one row of integers; got int64 of shape ()", *saved(np.array(5)), "--max-tokens", 3)
    refuses("chunk size must be 1 or more; got 0", *saved(np.arange(9)), "--chunk-size", 0)
    refuses("max-tokens must be 1 or more; got -1", *saved(np.arange(9)), "--max-tokens", -1)
    refuses("mode 'sparse' is not one of", *saved(np.arange(9)), "--mode", "sparse")
    refuses("could not be written", *saved(np.arange(9)), "--nll-out", tmp_path / "no" / "nll.npy")
    refuses("could not be written", *saved(np.arange(9)), "--curve-out", tmp_path / "no" / "curve.csv")
    refuses("could not be written", *saved(np.arange(9)), "--resume", tmp_path / "not.npy")


BEFORE_LOADING = {
    "chunk size": (("--chunk-size", 0), "chunk size must be 1 or more; got 0"),
    "start size": (("--start-size", -1), "start_size must be a non-negative integer; got -1"),
    "recent size": (("--recent-size", -5), "recent_size must be a non-negative integer; got -5"),
    "no folder": (("--nll-out", "no/nll.npy"), "could not be written: No such file"),
    "a folder": (("--curve-out", "."), "could not be written: it is a folder"),
    "one file for both": (("--nll-out", "a.out", "--curve-out", "./a.out"), "are both a.out; give two files"),
}


@pytest.mark.parametrize(("options", "message"), BEFORE_LOADING.values(), ids=BEFORE_LOADING)
def test_perplexity_checks_its_options_before_it_loads_a_model(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    np.save("tokens.npy", np.arange(9))
    arguments = ("perplexity", "--model", tmp_path / "no-model", "--tokens", "tokens.npy")
    assert_refused(run(*arguments, *options), message)
    assert os.listdir() == ["tokens.npy"]


def test_the_result_goes_where_it_is_sent(run, model, tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(9))
    (tmp_path / "link.npy").symlink_to(tmp_path / "file.npy")
    for out in (tmp_path / "link.npy", "/dev/null"):
        assert run("perplexity", "--model", model, "--tokens", tmp_path / "tokens.npy", "--nll-out", out)[0] == 0
    assert np.load(tmp_path / "file.npy").shape == (8,)
    assert (tmp_path / "link.npy").is_symlink()
    assert not os.path.isfile("/dev/null")
