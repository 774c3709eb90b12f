"""Evaluations on disk: a resumed one gives the same result as an uninterrupted one; several texts are independent."""

import csv

import numpy as np
import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import new_file
from sllm_jax.core.int8 import quantize_model
from sllm_jax.evaluate.evaluation import Evaluation, EvaluationSettings
from sllm_jax.evaluate.perplexity import EVALUATION_MODES, token_nll

LENGTHS = (90, 40, 61)
NAMES = {"model": "tiny"}


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 101, length) for length in LENGTHS]


def evaluation(folder, model, texts, mode="streaming", chunk_size=16, names=NAMES):
    folder.mkdir(exist_ok=True)
    return Evaluation(folder, model, texts, EvaluationSettings(mode, 3, 20, chunk_size), names)


def finished(one):
    for _ in one.steps():
        pass
    return one


@pytest.mark.parametrize("mode", EVALUATION_MODES)
def test_each_of_several_texts_has_its_own_nll(tiny, texts, tmp_path, mode):
    together = finished(evaluation(tmp_path, tiny, texts, mode))
    assert together.done == together.total == sum(LENGTHS) - 3
    for i, ids in enumerate(texts):
        alone = np.concatenate(list(token_nll(tiny, ids, mode, 3, 20)))
        np.testing.assert_allclose(together.nll_of(i), alone, atol=1e-5)
        assert together.mean(i) == pytest.approx(alone.mean(dtype=np.float64), abs=1e-5)


@pytest.mark.parametrize("mode", EVALUATION_MODES)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_interrupted_and_gone_on_with_is_the_same_as_in_one_go(tiny, texts, tmp_path, monkeypatch, mode, after):
    monkeypatch.setattr("sllm_jax.evaluate.perplexity._WINDOW_TOKENS", 5 * 24)
    whole = finished(evaluation(tmp_path / "whole", tiny, texts, mode))
    first = evaluation(tmp_path / "parts", tiny, texts, mode)
    steps = first.steps()
    for _ in range(after):
        next(steps)
    first.save()
    done = first.done
    assert (done > 0) == (after > 0)
    next(steps)  # more that is lost, as the process that did it was killed
    second = evaluation(tmp_path / "parts", tiny, texts, mode, chunk_size=16)
    assert second.done == done
    sums = [nats for _, nats in second.steps()]
    np.testing.assert_array_equal(second.nll, whole.nll)
    assert sums[-1] == pytest.approx(whole.nll.sum(dtype=np.float64))


def test_another_chunk_size_goes_on_too(tiny, texts, tmp_path):
    whole = finished(evaluation(tmp_path / "whole", tiny, texts))
    first = evaluation(tmp_path / "parts", tiny, texts)
    next(first.steps())
    first.save()
    np.testing.assert_allclose(
        finished(evaluation(tmp_path / "parts", tiny, texts, chunk_size=7)).nll, whole.nll, atol=1e-4
    )


def test_a_finished_one_has_nothing_left_to_do(tiny, texts, tmp_path):
    finished(evaluation(tmp_path, tiny, texts)).save()
    assert list(evaluation(tmp_path, tiny, texts).steps()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mode": "window"}, "mode"),
        ({"names": {"model": "other"}}, "model"),
        ({"texts": [np.arange(9)]}, "texts"),
    ],
)
def test_another_evaluation_is_not_gone_on_with(tiny, texts, tmp_path, change, named):
    evaluation(tmp_path, tiny, texts)
    with pytest.raises(SllmError, match=rf"holds another evaluation \(different: {named}\); resume with the same"):
        evaluation(tmp_path, tiny, **({"texts": texts} | change))


def test_floats_are_not_gone_on_with_as_int8(tiny, texts, tmp_path):
    evaluation(tmp_path, tiny, texts)
    with pytest.raises(SllmError, match=r"\(different: weights\)"):
        evaluation(tmp_path, quantize_model(tiny), texts)


def test_a_damaged_folder_is_refused(tiny, texts, tmp_path):
    first = evaluation(tmp_path, tiny, texts)
    next(first.steps())
    first.save()
    (tmp_path / "nll.npy").write_bytes(b"")
    with pytest.raises(SllmError, match=r"nll.npy is not a .npy file of numbers \(EOF.*\); remove .* to start over"):
        evaluation(tmp_path, tiny, texts)


def test_the_curve_is_the_running_mean(tiny, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("sllm_jax.evaluate.evaluation.CURVE_ROWS", 4)
    one = finished(evaluation(tmp_path, tiny, texts))
    with new_file(tmp_path / "curve.csv") as file:
        one.write_curve(file, ["a", "b", "c"])
    with (tmp_path / "curve.csv").open(newline="") as written:
        rows = list(csv.DictReader(written))
    assert [row["tokens"] for row in rows if row["text"] == "b"] == ["9", "18", "27", "36", "39"]
    assert [row["past_trained_context"] for row in rows if row["text"] == "a"] == ["0", "0", "1", "1", "1"]
    for row in rows:
        nll, end = one.nll_of("abc".index(row["text"])), int(row["tokens"])
        assert float(row["log_perplexity"]) == pytest.approx(nll[:end].mean(dtype=np.float64), rel=1e-6)
    assert float(rows[1]["log_perplexity_since_last_row"]) == pytest.approx(one.nll_of(0)[22:44].mean(), rel=1e-5)
