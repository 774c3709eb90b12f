"""Plans of experiments: impossible experiments are refused before anything is computed."""

from dataclasses import replace

import pytest
from test_reproduce import TEXT

from sllm_jax.common.errors import SllmError
from sllm_jax.reproduce import EXPERIMENTS, experiment_inputs, runner
from sllm_jax.reproduce.arc import ArcQuestion
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs, ExperimentOptions
from sllm_jax.text.long_text import encode_blocks


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_plan_computes_nothing(loaded, name, monkeypatch):
    """Whatever runs on the device fails, and every experiment is planned all the same."""
    for module in ("reproduce.passes.token_nll", "reproduce.stability.token_nll", "reproduce.fig2.attention_on_first"):
        monkeypatch.setattr(f"sllm_jax.{module}", None)
    for module in ("streamqa.init_carry", "streameval.Stream", "fig10.streaming_program"):
        monkeypatch.setattr(f"sllm_jax.reproduce.{module}", None)
    record = ArcQuestion("Who?", ("he", "she"), 1)
    assert callable(
        EXPERIMENTS[name].plan(ExperimentInputs(*loaded, TEXT * 60, ExperimentOptions(questions={"arc": [record] * 3})))
    )


@pytest.mark.parametrize("name", ["fig2", "fig3", "table1", "table2", "table6", "stability", "streameval", "streamqa"])
def test_a_tokenizer_of_another_model_is_refused_by_the_plan(loaded, name):
    """Its ids go past the vocabulary; fig10 reads no text."""
    small = replace(loaded[0].module.config, vocab_size=100)
    narrow = replace(loaded[0], module=loaded[0].module.clone(config=small))
    options = ExperimentOptions(questions={"arc": [ArcQuestion("Who?", ("he", "she"), 1)] * 3})
    with pytest.raises(SllmError, match=r"token id \d+ at index \d+ is outside the vocabulary of 100"):
        EXPERIMENTS[name].plan(ExperimentInputs(narrow, loaded[1], TEXT * 60, options))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fig10", ExperimentOptions(cache_sizes=(16, 10**8))),
        ("table2", ExperimentOptions(recent_size=10**8)),
        (
            "streamqa",
            ExperimentOptions(recent_size=10**8, questions={"arc": [ArcQuestion("Who?", ("he", "she"), 1)] * 3}),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:a step attends to")
def test_a_cache_that_memory_cannot_hold_is_refused_by_the_plan(loaded, name, options):
    with pytest.raises(SllmError, match=r"a cache of \d \+ \d+ tokens takes .* GiB of memory, and .* are free"):
        EXPERIMENTS[name].plan(ExperimentInputs(*loaded, TEXT * 60, options))


def test_a_text_is_tokenized_once_for_all_experiments(loaded, monkeypatch):
    calls = []
    monkeypatch.setattr(experiment_inputs, "encode_blocks", lambda *given: calls.append(given) or encode_blocks(*given))
    chosen = {name: one for name, one in EXPERIMENTS.items() if one.needs("text")}
    assert set(runner.plan_all(chosen, ExperimentInputs(*loaded, TEXT * 60))) == set(chosen)
    assert len(calls) == 1


def test_the_seed_of_streameval_is_checked(loaded):
    with pytest.raises(SllmError, match="seed must be 0 or more; got -1"):
        EXPERIMENTS["streameval"].plan(ExperimentInputs(*loaded, "", ExperimentOptions(seed=-1)))
