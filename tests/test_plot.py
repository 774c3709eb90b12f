"""Plots: their formats, their titles, their scales, and commands that run without matplotlib."""

import importlib.util
import re
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_cli import assert_refused
from training import CONFIG, write_text

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import write_json
from sllm_jax.common.plot import Plot
from sllm_jax.reproduce import EXPERIMENTS, fig2
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions
from sllm_jax.reproduce.report import name_of

BEGINNINGS = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF"}
TEXT = "The cat sat by the window and saw the rain. "
NOTE = r"matplotlib is not installed, so plots are left out; run pip install -e '\.\[plot\]' in /[^\n]+\n"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.novel.txt"
    path.write_text(TEXT * 60)
    return path


@pytest.fixture
def no_matplotlib(monkeypatch):
    """As where the extra `plot` is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert importlib.util.find_spec("matplotlib") is None


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_a_plot_in_each_format_is_the_same_every_time(kind):
    plot = Plot(lambda figure: figure.subplots().plot([1, 2]), title="a model, a text")
    assert plot.render(kind).startswith(BEGINNINGS[kind])
    assert plot.render(kind) == plot.render(kind)


def test_a_plot_names_the_model_and_the_text(loaded):
    names = {"model": "/models/mine/", "text": "texts/book.txt"}
    report = EXPERIMENTS["fig2"].run(ExperimentInputs(*loaded, TEXT * 60, ExperimentOptions(max_tokens=300), names))
    assert report.plot.title == fig2.maps(ExperimentInputs(*loaded, TEXT * 9, names=names)).title == "mine, book.txt"
    assert b"mine, book.txt" in re.sub(rb"<!--|-->", b"", report.plot.render("svg"))
    assert name_of({"model": "bundled:llama"}) == "bundled:llama"
    assert name_of({}) == ""


def legend_above(figure):
    figure.subplots().plot([1, 2], label="a line")
    figure.legend(loc="outside upper center")


def centred_words(figure):
    figure.subplots().plot([1, 2])
    figure.suptitle("what is drawn")


def legend_of_many_lines(figure):
    panels = figure.subplots(1, 2, sharey=True)
    for i in range(6):
        panels[0].plot([i, 2], label=f"line {i}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)


@pytest.mark.parametrize("draw", [legend_above, centred_words, legend_of_many_lines])
def test_the_title_of_a_plot_overlaps_nothing(draw, monkeypatch):
    boxes = []

    def save(figure, *_, **__):
        figure.draw_without_rendering()
        drawn = figure.subfigs[0] if figure.subfigs else figure
        others = [*drawn.legends, *figure.get_axes(), *(text for text in drawn.texts if text is not figure._suptitle)]
        boxes.append((figure._suptitle.get_window_extent(), [one.get_tightbbox() for one in others]))

    monkeypatch.setattr(Figure, "savefig", save)
    Plot(draw, title="bundled:llama, bleak_house.txt").render("svg")
    [(title, others)] = boxes
    assert others
    assert not [box for box in others if box.y1 > title.y0]


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_reproduce_writes_the_format_that_is_asked_for(run, model, text, tmp_path, kind):
    arguments = ("--model", model, "--text", text, "--max-tokens", 300, "--format", kind)
    assert run("reproduce", "fig2", *arguments, "--out", tmp_path / "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["fig2.csv", "fig2.md", f"fig2.{kind}"])
    assert f" --format {kind} " in (tmp_path / "out/fig2.md").read_text()


def test_a_page_shows_a_picture_and_leads_to_a_pdf(tmp_path):
    from sllm_jax.reproduce.page import write_page

    for name, kind in (("a", "png"), ("b", "pdf"), ("c", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.md").write_text(f"# {name}\n\n| x |\n\n| setting | value |\n")
        if kind:
            (tmp_path / name / f"{name}.{kind}").touch()
    write_page(tmp_path, "m", {"a": "one", "b": "two", "c": "three"}, {})
    page = (tmp_path / "README.md").read_text()
    assert "## a\n\n[![a](a/a.png)](a/a.png)\n\n```bash\none" in page
    assert "## b\n\n[the plot](b/b.pdf)\n\n```bash\ntwo" in page
    assert "## c\n\n```bash\nthree" in page


def test_an_unknown_format_is_refused(run, model, text, tmp_path):
    arguments = ("reproduce", "fig2", "--model", model, "--text", text, "--out", tmp_path / "out", "--format", "jpg")
    assert_refused(run(*arguments), "format 'jpg' is not one of png, svg, pdf")
    with pytest.raises(SllmError, match="format 'gif' is not one of"):
        Plot(print).render("gif")


def test_train_writes_the_format_that_is_asked_for(run, tmp_path):
    assert train(run, tmp_path, "--format", "svg")[0] == 0
    assert b"out, text.txt" in (tmp_path / "out/loss.svg").read_bytes()
    assert_refused(train(run, tmp_path, "--format", "bmp"), "format 'bmp' is not one of png, svg, pdf")


def train(run, folder, *more):
    write_json(folder / "config.json", CONFIG)
    small = ("--steps", 4, "--warmup-steps", 1, "--batch-size", 4)
    return run("train", write_text(folder), "--config", folder / "config.json", "--out", folder / "out", *small, *more)


def test_train_runs_without_matplotlib_and_says_so(run, tmp_path, no_matplotlib):
    code, out, err = train(run, tmp_path)
    assert (code, out.startswith("held back: ")) == (0, True)
    assert re.fullmatch(rf"{NOTE}wrote [^\n]+\n", err)
    assert not list((tmp_path / "out").glob("loss*"))
    assert (tmp_path / "out/metrics.csv").is_file()


@pytest.mark.parametrize("name", ["fig3", "stability"])
def test_reproduce_runs_without_matplotlib_and_says_so(run, model, text, tmp_path, no_matplotlib, name):
    arguments = ("--model", model, "--text", text, "--max-tokens", 300, "--out", tmp_path / "out")
    code, table, err = run("reproduce", name, *arguments)
    assert (code, table.startswith(f"# {name}: ")) == (0, True)
    assert re.fullmatch(rf"{NOTE}wrote [^\n]+\n", err)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.csv", f"{name}.md"]


def test_a_plot_without_matplotlib_is_refused(no_matplotlib):
    with pytest.raises(SllmError, match=r"plots need matplotlib; run pip install -e '\.\[plot\]' in /"):
        Plot(print).render()


def colours_of(on_first, difference):
    """Of both heat maps of fig2: what a value is mapped to, from 0 to 1."""
    figure = Figure()
    fig2._draw(figure, on_first, difference, 0.02)
    return [axes.images[0].norm for axes in figure.axes if axes.images]


def test_a_sink_is_seen_beside_heads_without_one():
    """0.3 of the attention is past the middle of the scale, 0.01 at its beginning."""
    probability, _ = colours_of(np.array([[0.3, 0.01]]), np.array([[1.0, -1.0]]))
    assert probability(0.3) > 0.5
    assert probability(0.01) <= 0.1 + 1e-6
    assert (probability.vmin, probability.vmax) == (0, 1)


@pytest.mark.parametrize("difference", [[[-23.0, 2.6]], [[3.0, 1.0]], [[-2.0, -9.0]], [[0.0, 0.0]]])
def test_signed_values_are_centred_at_zero(difference):
    _, signed = colours_of(np.array([[0.1, 0.2]]), np.array(difference))
    assert signed(0.0) == 0.5
    assert signed(2.0) - 0.5 == pytest.approx(0.5 - signed(-2.0))


def test_numbers_can_be_read_on_their_colours():
    figure = Figure()
    fig2._draw(figure, np.array([[0.0, 1.0]]), np.array([[-5.0, 0.0]]), 0.02)
    texts = {text.get_text(): text.get_color() for axes in figure.axes for text in axes.texts}
    assert texts == {"0.00": "white", "1.00": "black", "-5.0": "white", "0.0": "black"}
