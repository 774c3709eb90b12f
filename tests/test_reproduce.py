"""`reproduce`: three files and a table for each experiment, each result against its definition, and bad input."""

import csv
import json
import math
import os
import re
import shlex
import shutil
from statistics import NormalDist, stdev

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import assert_refused

from sllm_jax.benchmark import programs
from sllm_jax.common.errors import SllmError
from sllm_jax.common.result_table import Table
from sllm_jax.core.model import dense_logits
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.reproduce import EXPERIMENTS, fig2, fig10, runner
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions
from sllm_jax.reproduce.fig3 import running_mean, smoothed
from sllm_jax.text.tokenizer import encode

PNG = b"\x89PNG\r\n\x1a\n"
TEXT = "The cat sat by the window and saw the rain. "


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 60)
    return path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_text_is_asked_for_where_one_is_needed(run, model, tmp_path):
    assert_refused(
        run("reproduce", "fig3", "--model", model, "--out", tmp_path / "out"), "fig3 needs a text; give --te"
    )


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "arc.json"
    record = {"question": "Who?", "choices": {"text": ["he", "she"], "label": ["A", "B"]}, "answerKey": "B"}
    path.write_text(json.dumps([record] * 3))
    return path


@pytest.fixture
def small_caches(monkeypatch):
    """Of fig10."""
    monkeypatch.setattr(fig10, "CACHES", (32, 64))
    monkeypatch.setattr(programs, "CALL_SECONDS", 0.01)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_three_files_and_the_table(run, model, text, questions, small_caches, tmp_path, name):
    out, options = tmp_path / "new" / "out", ("--max-tokens", 300, "--lines", 22)
    code, table, err = run(
        "reproduce", name, "--model", model, "--text", text, "--questions", questions, "--out", out, *options
    )
    assert (code, err) == (0, f"wrote {out}\n")
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.{kind}" for kind in ("csv", "md", "png")]
    assert (out / f"{name}.md").read_text() == table
    assert table.startswith(f"# {name}: ")
    assert f"| model | {model} |" in table
    command = re.search(r"^\| command \| (.*) \|$", table, re.MULTILINE)[1]
    assert command.startswith(f"sllm-jax reproduce {name} ")
    assert command.endswith(f"--out {out}")
    assert ("--text" in command) == EXPERIMENTS[name].needs("text")
    assert ("--lines 22" in command) == (name == "streameval")
    if name == "fig3":
        assert "| streaming | 4 + 123 tokens kept; a step also attends to its own token |" in table
        assert "| recompute | a fresh pass over the last 128 tokens; one token in 1, " in table
    assert (out / f"{name}.png").read_bytes().startswith(PNG)


def test_fig2_reads_windows_from_the_start_tokens_on(loaded, tmp_path):
    text = TEXT * 60
    subject = ExperimentInputs(*loaded, text, ExperimentOptions(max_tokens=300))
    report = EXPERIMENTS["fig2"].run(subject)
    report.write(tmp_path, "fig2")
    rows = rows_of(tmp_path / "fig2.csv")
    assert [(row["layer"], row["head"]) for row in rows] == [(str(i), str(j)) for i in range(2) for j in range(4)]
    for row in rows:
        assert float(row["mass_first4"]) == pytest.approx(sum(float(row[f"mass_{i}"]) for i in range(4)), rel=1e-5)
    start, ids = subject.start_tokens().tolist(), subject.text_tokens().tolist()
    assert start + ids == encode(loaded[1], text, start=True).tolist()[: len(start) + 300]
    assert len(start) == 1
    assert report.settings["windows"].startswith("2 of 128 tokens")
    assert report.settings["queries"].startswith("positions 64 to 127")


def test_fig3_holds_the_nll_of_every_mode(loaded, tmp_path):
    subject = ExperimentInputs(*loaded, TEXT * 60, ExperimentOptions(300, 3, 20, 7, 150))
    report = EXPERIMENTS["fig3"].run(subject)
    report.write(tmp_path, "fig3")
    rows = rows_of(tmp_path / "fig3.csv")
    ids = encode(loaded[1], TEXT * 60, start=True)[:301]
    assert [int(row["position"]) for row in rows] == list(range(1, 301))
    for mode, start, recent in (("dense", 0, 300), ("window", 0, 23), ("streaming", 3, 20), ("recompute", 3, 20)):
        expected = np.concatenate(list(token_nll(loaded[0], ids, mode, start, recent)))
        measured = np.array([float(row[mode] or "nan") for row in rows])
        evaluated = {"dense": np.arange(300) < 150, "recompute": np.arange(300) % 7 == 0}.get(mode, np.full(300, True))
        np.testing.assert_array_equal(np.isfinite(measured), evaluated)
        np.testing.assert_allclose(measured[evaluated], expected[evaluated], atol=1e-4)

    nll = {mode: np.array([float(row[mode] or "nan") for row in rows]) for mode in ("streaming", "recompute")}
    sampled = slice(None, None, 7)
    ratio = math.exp(nll["streaming"][sampled].mean() - nll["recompute"][sampled].mean())
    of_modes, on_same, on_dense = ({row[0]: row[1:] for row in table.rows} for table in report.tables)
    assert on_same["streaming"][2] == pytest.approx(ratio, rel=1e-5)
    assert on_same["recompute"][2] == on_same["recompute"][6] == 1
    assert on_same["recompute"][3] == on_same["recompute"][7] == ""
    difference = nll["streaming"][sampled] - nll["recompute"][sampled]
    mean = NormalDist(difference.mean(), stdev(difference.tolist()) / math.sqrt(len(difference)))
    interval = [mean.inv_cdf(0.025), mean.inv_cdf(0.975)]
    low, high = map(float, on_same["streaming"][3].split(" to "))
    assert (low, high) == pytest.approx(np.exp(interval), rel=1e-3)
    assert (on_same["window"][0], on_same["window"][4]) == (43, 24)
    assert on_dense["streaming"][0] == 150
    assert on_dense["streaming"][1] == pytest.approx(math.exp(nll["streaming"][:150].mean()), rel=1e-5)
    assert on_dense["streaming"][5] == pytest.approx(math.exp(nll["streaming"][128:150].mean()), rel=1e-5)
    assert of_modes["streaming"][0] == 300
    assert of_modes["streaming"][1] == pytest.approx(math.exp(nll["streaming"].mean()), rel=1e-5)
    assert of_modes["streaming"][2] == pytest.approx(math.exp(nll["streaming"][128:].mean()), rel=1e-5)
    text_bytes = len((TEXT * 60)[: len(loaded[1].decode(ids[1:]))].encode())
    bits = nll["streaming"].sum() / math.log(2) / text_bytes
    assert of_modes["streaming"][3] == pytest.approx(bits, rel=1e-5)


def text_perplexity(loaded, mode, sizes, before, count=300, every=1):
    """Over every so-manieth of the text's tokens but the first, with other tokens before it."""
    ids = encode(loaded[1], TEXT * 60, start=False)[:count]
    nll = np.concatenate(list(token_nll(loaded[0], np.concatenate([before, ids]), mode, *sizes)))
    return math.exp(nll[-(count - 1) :][::every].mean(dtype=np.float64))


def test_table1_puts_line_breaks_in_the_place_of_the_first_tokens(loaded):
    table = EXPERIMENTS["table1"].run(ExperimentInputs(*loaded, TEXT * 60, ExperimentOptions(300, 3, 20, 1))).figures
    found = {row[0]: row[2] for row in table.rows}
    bos, line_break = [loaded[1].bos_token_id], encode(loaded[1], "\n", start=False)[-1]
    expected = {
        "0 + 23 (window)": text_perplexity(loaded, "window", (0, 23), bos),
        "3 + 20": text_perplexity(loaded, "streaming", (3, 20), bos),
        '3 "\\n" + 20': text_perplexity(loaded, "streaming", (3, 20), [line_break] * 3),
        "re-computation": text_perplexity(loaded, "recompute", (3, 20), bos),
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_table1_compares_on_the_tokens_that_are_recomputed(loaded):
    rows = (
        EXPERIMENTS["table1"].run(ExperimentInputs(*loaded, TEXT * 60, ExperimentOptions(300, 3, 20, 7))).figures.rows
    )
    assert [row[1] for row in rows] == [299, 299, 299, 42]
    nll = np.concatenate(list(token_nll(loaded[0], encode(loaded[1], TEXT * 60, start=True)[:301], "streaming", 3, 20)))
    assert rows[1][3] == pytest.approx(math.exp(nll[7::7].mean(dtype=np.float64)), rel=1e-5)  # nll[0] is of the first


@pytest.mark.parametrize(
    ("name", "caches"),
    [("table2", [(0, 23), (1, 22), (2, 21), (4, 19), (8, 15)]), ("table6", [(4, 10), (4, 25), (4, 55), (4, 115)])],
)
def test_tables_2_and_6_hold_the_perplexity_of_each_cache(loaded, name, caches):
    sizes = (3, 20) if name == "table2" else (4, 115)
    rows = EXPERIMENTS[name].run(ExperimentInputs(*loaded, TEXT * 60, ExperimentOptions(300, *sizes))).figures.rows
    assert [row[:2] for row in rows] == caches
    for start, recent, found in rows:
        expected = text_perplexity(loaded, "streaming", (start, recent), [loaded[1].bos_token_id])
        assert found == pytest.approx(expected, rel=1e-5)


def test_all_is_a_page_of_each_with_the_command_that_makes_it(run, model, text, small_caches, tmp_path):
    out, options = tmp_path / "all", ("--max-tokens", 300, "--lines", 22)
    arguments = ("reproduce", "all", "--model", model, "--text", text, "--out", out, *options)
    code, printed, err = run(*arguments)
    names = [name for name in EXPERIMENTS if name != "streamqa"]  # no questions were given
    assert (code, printed) == (0, "")
    assert err.splitlines() == [*(f"finished {name}" for name in names), f"wrote {out}"]
    page = (out / "README.md").read_text()
    assert re.findall(r"^## (\w+): ", page, re.MULTILINE) == names
    commands = re.findall(r"```bash\n(.*)\n```", page)
    for name, command in zip(names, commands, strict=True):
        assert f"]({name}/{name}.png)" in page
        assert shlex.split(command)[:3] == ["sllm-jax", "reproduce", name]
    words = shlex.split(commands[names.index("table2")])
    words[-1] = str(tmp_path / "again")
    assert run(*words[1:])[0] == 0
    assert (tmp_path / "again/table2.csv").read_text() == (out / "table2/table2.csv").read_text()


def test_all_goes_on_with_what_is_missing(run, model, text, small_caches, tmp_path):
    out = tmp_path / "all"
    arguments = ("reproduce", "all", "--model", model, "--text", text, "--out", out, "--lines", 22)
    assert run(*arguments, "--max-tokens", 300)[0] == 0
    shutil.rmtree(out / "table2")
    (out / "README.md").unlink()
    assert run(*arguments, "--max-tokens", 300)[2] == f"finished table2\nwrote {out}\n"
    assert (out / "README.md").is_file()
    assert_refused(run(*arguments, "--max-tokens", 290), "fig2 was made by another command; name a new folder")


def test_all_checks_every_experiment_before_the_first_is_made(run, model, text, questions, tmp_path, monkeypatch):
    """The issue's input, `--lines 20`, and two experiments more that cannot be made: one sentence names all three."""
    arguments = (
        "reproduce",
        "all",
        "--model",
        model,
        "--text",
        text,
        "--questions",
        questions,
        "--out",
        tmp_path / "o",
    )
    monkeypatch.setattr(runner, "run_experiment", None)
    found = run(*arguments, "--max-tokens", 130, "--recent-size", 10, "--max-questions", 1, "--lines", 20)
    assert_refused(
        found, "table6: the experiment needs a cache of 48 tokens or more; got 14; streameval needs more than 20"
    )
    assert found[2].endswith("got 20; streamqa: arc needs 2 questions or more; got 1\n")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["README.md", "notes.txt"])
def test_all_touches_no_folder_of_somebody_else(run, model, text, tmp_path, name):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("precious")
    arguments = ("reproduce", "all", "--model", model, "--text", text, "--out", out)
    assert_refused(run(*arguments), f"holds something other than a report ({name}); name a new folder")
    assert (out / name).read_text() == "precious"
    assert_refused(run(*arguments[:-1], text / "out"), "could not be written: Not a directory")


def test_what_does_not_fit_the_device_is_said(run, model, text, small_caches, tmp_path, monkeypatch):
    def runs_out(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand more")

    monkeypatch.setattr(fig10, "recompute_program", runs_out)
    out = tmp_path / "all"
    arguments = ("reproduce", "all", "--model", model, "--text", text, "--out", out, "--lines", 22)
    code, _, err = run(*arguments, "--max-tokens", 300)
    assert (code, "fig10 failed on the device (RESOURCE_EXHAUSTED: Out of memory);" in err) == (2, True)
    assert "Failed: fig10 failed on the device" in (out / "README.md").read_text()


def test_whole_maps_of_attention_are_drawn(loaded):
    text = "The cat sat by the window and saw the rain. " * 10
    assert fig2.maps(ExperimentInputs(*loaded, text)).render().startswith(PNG)
    for length in (1, 129):  # a start token alone; more than the trained context
        with pytest.raises(SllmError, match=f"a window must have 2 to 128 tokens; got {length}"):
            fig2.maps(ExperimentInputs(*loaded, text), length)


def test_fig10_times_both_sides(loaded, small_caches):
    report = EXPERIMENTS["fig10"].run(ExperimentInputs(*loaded, ""))
    assert [row[0] for row in report.figures.rows] == [32, 64]
    for _, streaming, recomputing, speed_up, streaming_memory, recomputing_memory in report.figures.rows:
        assert min(streaming, recomputing) > 0
        assert speed_up == pytest.approx(recomputing / streaming)
        parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded[0].params)) / 2**20
        assert min(streaming_memory, recomputing_memory) > parameters


def test_fig10_takes_caches_of_ones_own(loaded, small_caches):
    report = EXPERIMENTS["fig10"].run(ExperimentInputs(*loaded, "", ExperimentOptions(cache_sizes=(48, 16))))
    assert [row[0] for row in report.figures.rows] == [16, 48]


def test_fig10_writes_what_a_fresh_pass_says(loaded):
    chosen, width = loaded[0], 20
    tokens = np.random.default_rng(0).integers(0, 420, width).astype(np.int32)
    expected = tokens.tolist()
    for _ in range(5):
        logits = dense_logits(chosen, jnp.array(expected[-width:]), -1)
        expected.append(int(logits.argmax()))
    found = programs.recompute(chosen, jnp.asarray(tokens), steps=5)
    assert np.asarray(found).tolist() == expected[-width:]


def test_stability_is_the_perplexity_of_each_stretch(loaded, monkeypatch):
    monkeypatch.setattr("sllm_jax.reproduce.stability.STRETCHES", 4)
    subject = ExperimentInputs(*loaded, TEXT * 200, ExperimentOptions(2200, 3, 20))
    report = EXPERIMENTS["stability"].run(subject)
    ids = np.concatenate([subject.start_tokens(), subject.text_tokens()])
    nll = np.concatenate(list(token_nll(loaded[0], ids, "streaming", 3, 20)))
    rows = report.figures.rows
    assert [row[0] for row in rows] == [768, 1280, 1792, 2200]  # whole chunks of 256
    begin = 0
    for end, of_stretch, so_far, speed, memory, _ in rows:
        assert of_stretch == pytest.approx(np.exp(nll[begin:end].mean(dtype=np.float64)), rel=1e-5)
        assert so_far == pytest.approx(np.exp(nll[:end].mean(dtype=np.float64)), rel=1e-5)
        assert min(speed, memory) > 0
        begin = end


def test_running_mean_leaves_out_what_is_missing():
    values = np.array([np.nan, 2.0, np.nan, 4.0, 6.0, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(running_mean(values, 3), [np.nan, 2, 2, 3, 5, 5, 6, np.nan])


def test_a_sample_is_drawn_by_its_difference_from_streaming():
    streaming = np.random.default_rng(0).normal(size=40)
    sampled = np.arange(40) % 5 == 0
    nll = {"streaming": streaming, "recompute": np.where(sampled, streaming + 0.25, np.nan)}
    np.testing.assert_allclose(smoothed(nll, "recompute", 10), running_mean(streaming, 10) + 0.25)
    nll["recompute"] = np.random.default_rng(1).normal(size=40)
    np.testing.assert_allclose(smoothed(nll, "recompute", 10), running_mean(nll["recompute"], 10))


def test_a_table_in_markdown():
    table = Table(("a", "b"), [("x|y", 12345.6), (1, None), ("z", 1.23456e-5)])
    assert table.markdown().splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 12346 |",
        "| 1 |  |",
        "| z | 1.235e-05 |",
    ]


def test_bad_input_is_one_sentence(run, model, text, tmp_path):
    def refuses(message, name, *options, at=tmp_path / "out"):
        assert_refused(run("reproduce", name, "--model", model, "--text", text, "--out", at, *options), message)

    refuses("experiment 'fig9' is not one of fig2, fig3", "fig9")
    refuses("streamqa needs questions; give --questions FILE", "streamqa")
    refuses("none.json cannot be read (No such file", "streamqa", "--questions", tmp_path / "none.json")
    refuses("text.txt is neither a JSON list nor JSON lines", "streamqa", "--questions", text)
    refuses("max-questions must be 1 or more; got 0", "fig2", "--max-questions", 0)
    for name in ("table1", "table2", "stability"):
        refuses("a text that is longer than the window, 129 tokens or more; got 128", name, "--max-tokens", 128)
    refuses("start_size below its smallest cache, 256 tokens; got 256", "fig10", "--start-size", 256)
    refuses("start_size below its smallest cache, 3 tokens; got 4", "fig10", "--cache-size", 9, "--cache-size", 3)
    refuses("qa-format 'quiz' is not one of few-shot, chat", "fig2", "--qa-format", "quiz")
    refuses("fig2 needs a text of at least one window, 127 tokens; got 126", "fig2", "--max-tokens", 126)
    refuses("fig3 needs a text longer than the trained context, 128 tokens; got 128", "fig3", "--max-tokens", 128)
    refuses("the experiment needs a cache of 9 tokens or more; got 8", "table2", "--recent-size", 4)
    refuses("the experiment needs a cache of 48 tokens or more; got 34", "table6", "--recent-size", 30)
    refuses("a perplexity needs 2 tokens or more; got 1", "table1", "--max-tokens", 1)
    refuses("exists already", "fig2", at=tmp_path)
    refuses("lines must be 1 or more; got 0", "streameval", "--lines", 0)
    refuses("could not be written", "fig2", at=text / "out")
    refuses("max-tokens must be 1 or more; got 0", "fig2", "--max-tokens", 0)
    refuses("recompute-every must be 1 or more; got 0", "fig3", "--recompute-every", 0)
    refuses("dense-tokens must be 1 or more; got -1", "fig3", "--dense-tokens", -1)
    refuses("start_size must be a non-negative integer; got -1", "fig3", "--start-size", -1)
    assert sorted(os.listdir(tmp_path)) == ["text.txt"]


def test_a_model_without_a_tokenizer_is_refused(run, model, text, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    result = run("reproduce", "fig2", "--model", bare, "--text", text, "--out", tmp_path / "out")
    assert_refused(result, "needs a tokenizer")
