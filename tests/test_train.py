"""Training: exact repetition and resume, the numbers of one step against PyTorch, and a fixed number of programs."""

import os
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from checkpoints import assert_same, tensors_of
from training import CONFIG, done, prepared, settings_of
from transformers import AutoModelForCausalLM

from sllm_jax.common import checkpoint, orbax
from sllm_jax.common.errors import SllmError
from sllm_jax.convert import to_huggingface
from sllm_jax.convert.families import module_for
from sllm_jax.core.model import Model, dense_logits
from sllm_jax.train import metrics
from sllm_jax.train.metrics import Row
from sllm_jax.train.preparation import hf_config
from sllm_jax.train.run import CHECKPOINTS, METRICS, MODEL, TrainingRun
from sllm_jax.train.step import eval_step, init_train_state, learning_rate, mean_nll, optimizer, train_step

NO_WARM_UP = {"warmup_steps": 0, "clip_norm": 0.3}


def module_of(settings):
    return module_for(hf_config(settings), settings.dtype).clone(remat=settings.remat)


def samples_of(count=8, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 290, (count, 17)).astype(np.int32)


def after_a_step(**changes):
    """State and measures after one step on 8 samples."""
    settings = settings_of(**NO_WARM_UP | changes)
    module = module_of(settings)
    return train_step(
        module, optimizer(settings), init_train_state(module, settings), samples_of(), settings.accumulate
    )


def measures(run: TrainingRun) -> list[Row]:
    """The rows on disk but for the one thing that differs from run to run."""
    rows = metrics.read_rows(run.folder / METRICS, run.step, metrics.digest(run.rows))
    return [replace(row, tokens_per_second=0.0) for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> TrainingRun:
    """A run that nothing has interrupted."""
    return done(prepared(tmp_path_factory.mktemp("whole")))


def test_one_seed_is_one_model_and_another_is_another(whole, tmp_path):
    assert_same(done(prepared(tmp_path)).state.params, whole.state.params)
    (tmp_path / "other").mkdir()
    other = prepared(tmp_path / "other", seed=1)
    assert any(
        not np.array_equal(one, two)
        for one, two in zip(jax.tree.leaves(done(other).state.params), jax.tree.leaves(whole.state.params), strict=True)
    )


@pytest.mark.parametrize("stop_at", [3, 7, 12])  # before any checkpoint, between two, behind the last
def test_a_run_left_and_taken_up_ends_the_same(whole, tmp_path, stop_at):
    run = prepared(tmp_path)
    for step, _ in run.steps():
        if step == stop_at:
            break
    assert not (run.folder / MODEL).exists()
    again = TrainingRun(run.folder, run.settings, run.save_every)
    assert again.step == {3: 0, 7: 5, 12: 12}[stop_at]
    done(again)
    assert_same(again.state.params, whole.state.params)
    assert_same(*({"": leaf} for leaf in (again.state.step, whole.state.step)))
    assert measures(again) == measures(whole)
    assert [row.step for row in measures(again)] == [5, 10, 12]
    assert [path.name for path in (run.folder / CHECKPOINTS).iterdir()] == ["00000012"]


def test_the_loss_falls_and_is_measured(whole):
    rows = whole.rows
    assert rows[-1].loss < rows[0].loss - 0.3
    assert [row.tokens for row in rows] == [5 * 64, 10 * 64, 12 * 64]
    assert all(row.held_back_nll is not None for row in rows)
    learned_from = float(learning_rate(whole.settings)(11))
    assert rows[-1].learning_rate == pytest.approx(learned_from)
    text = (whole.folder / "held_back.txt").read_text()
    tokens = len(np.load(whole.folder / "held_back.npy"))
    expected = rows[-1].held_back_nll / np.log(2) * tokens / len(text.encode())
    assert rows[-1].held_back_bits_per_byte == pytest.approx(expected)
    assert (whole.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_bfloat16_learns_and_keeps_float32(whole, tmp_path):
    run = done(prepared(tmp_path, dtype="bfloat16"))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(run.state.params)} == {"float32"}
    assert run.rows[-1].loss < run.rows[0].loss - 0.3
    assert run.rows[-1].loss == pytest.approx(whole.rows[-1].loss, abs=0.05)
    assert run.rows[-1].loss != whole.rows[-1].loss


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"remat": True}], ids=str)
def test_ways_to_save_memory_change_nothing(changes):
    (expected, numbers), (state, found) = after_a_step(batch_size=8), after_a_step(batch_size=8, **changes)
    np.testing.assert_allclose(found["loss"], numbers["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["gradient_norm"], numbers["gradient_norm"], rtol=1e-5)
    close = partial(np.testing.assert_allclose, atol=1e-6)  # the moments are the gradient, scaled
    jax.tree.map(close, state.opt_state, expected.opt_state)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected.opt_state[1][0].mu)) > 1e-3


def test_remat_computes_layers_again():
    counts = {}
    for remat in (False, True):
        settings = settings_of(remat=remat)
        module = module_of(settings)
        params = init_train_state(module, settings).params
        gradient = jax.grad(lambda params, module=module: mean_nll(Model(module, params), jnp.asarray(samples_of())))
        counts[remat] = str(jax.make_jaxpr(gradient)(params)).count(" exp ")
    assert counts[True] > counts[False]


def test_the_learning_rate_rises_and_falls():
    schedule = learning_rate(settings_of(steps=12, warmup_steps=2, learning_rate=1e-2, final_learning_rate=1e-3))
    found = [float(schedule(step)) for step in (0, 1, 2, 7, 12, 20)]
    np.testing.assert_allclose(found, [0, 0.005, 0.01, 0.0055, 0.001, 0.001], rtol=1e-5)
    assert float(learning_rate(settings_of(warmup_steps=0))(0)) == pytest.approx(1e-2)


def test_only_matrices_decay_and_the_gradient_is_clipped():
    settings = settings_of(weight_decay=0.5, **NO_WARM_UP)
    chain = optimizer(settings)
    params = {"matrix": jnp.full((2, 3), 4.0), "vector": jnp.full(3, 4.0)}
    updates, _ = chain.update(jax.tree.map(jnp.zeros_like, params), chain.init(params), params)
    np.testing.assert_allclose(updates["matrix"], -1e-2 * 0.5 * 4, rtol=1e-5)
    np.testing.assert_array_equal(updates["vector"], 0)
    for size, expected in ((100.0, 0.3), (0.01, 0.03)):  # 9 numbers: norm 300, and 0.03
        gradient = jax.tree.map(lambda leaf, to=size: jnp.full_like(leaf, to), params)
        _, after = chain.update(gradient, chain.init(params), params)
        np.testing.assert_allclose(optax.tree.norm(after[1][0].mu), 0.1 * expected, rtol=1e-5)


def exported(settings, params, folder) -> dict[str, torch.Tensor]:
    """Parameters as the tensors of a Hugging Face folder."""
    to_huggingface(Model(module_of(settings), params, hf_config(settings)), folder)
    return tensors_of(folder)


def test_steps_equal_those_of_pytorch(tmp_path):
    config = CONFIG | {"attention_bias": True, "tie_word_embeddings": False, "num_hidden_layers": 2}
    settings = settings_of(config=config, steps=4, warmup_steps=1, weight_decay=0.5, clip_norm=0.5)
    module, chain = module_of(settings), optimizer(settings)
    state = init_train_state(module, settings)
    before = exported(settings, state.params, tmp_path / "before")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "before").train()
    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in theirs.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for step in range(3):
        samples = samples_of(4, seed=step)
        state, found = train_step(module, chain, state, samples, 1)
        tokens = torch.tensor(samples, dtype=torch.long)
        logits = theirs(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        assert float(found["loss"]) == pytest.approx(float(loss.detach()), abs=1e-5)
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert float(found["gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)
        assert float(norm) > 0.5, "nothing was clipped"
        for group in adamw.param_groups:
            group["lr"] = float(learning_rate(settings)(step))
        adamw.step()
    after = exported(settings, state.params, tmp_path / "after")
    parameters = dict(theirs.named_parameters())
    assert after.keys() == parameters.keys()
    for name, tensor in after.items():  # a gradient near 0 has no certain sign, and Adam begins with signs: a mean
        moved = (tensor - before[name]).abs().mean()
        assert moved > 1e-4, name
        assert (tensor - parameters[name].detach()).abs().mean() < 2e-3 * moved, name


def test_a_whole_run_compiles_each_program_once(tmp_path):
    before = train_step._cache_size(), eval_step._cache_size()
    config = CONFIG | {"hidden_size": 36, "head_dim": 6}  # compiled by no other test
    run = done(prepared(tmp_path, config=config, save_every=3))
    assert (train_step._cache_size() - before[0], eval_step._cache_size() - before[1]) == (1, 1)
    assert run.step == 12


def saved_of(state):
    """What a checkpoint holds."""
    return state, metrics.digest([])


def test_a_damaged_checkpoint_and_one_of_another_model_are_refused(whole, tmp_path):
    assert int(checkpoint.restore(whole.folder / CHECKPOINTS, saved_of(whole.state))[0].step) == 12
    settings = settings_of(config=CONFIG | {"intermediate_size": 20})
    with pytest.raises(SllmError, match="damaged or belongs to another run; remove it"):
        checkpoint.restore(whole.folder / CHECKPOINTS, saved_of(init_train_state(module_of(settings), settings)))
    shutil.copytree(whole.folder / CHECKPOINTS, tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SllmError, match="00000012 is damaged or belongs to another run; remove it"):
        checkpoint.restore(tmp_path / "checkpoints", saved_of(whole.state))


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    settings = settings_of()
    state = init_train_state(module_of(settings), settings)
    checkpoint.save(tmp_path, int(state.step), state)

    def fail(folder, params):
        (folder / "half").write_text("")
        raise SllmError("no space")

    with monkeypatch.context() as broken:
        broken.setattr(orbax, "save", fail)
        with pytest.raises(SllmError, match="no space"):
            checkpoint.save(tmp_path, 3, state.replace(step=jnp.int32(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["00000000"]
    (tmp_path / ".00000002.0123abcd.tmp/params").mkdir(parents=True)  # what a killed process leaves
    checkpoint.restore(tmp_path, state)  # the next start
    checkpoint.save(tmp_path, 3, state.replace(step=jnp.int32(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["00000003"]
    assert_same(checkpoint.restore(tmp_path, state).params, state.params)


ROWS = [Row(10, 100, 1.5, 0.1, 1e-3, 7.0), Row(20, 200, 0.25, 3.0, 2e-3, 8.0, 1.25, 1 / 3)]


def test_measures_come_back(tmp_path):
    path = tmp_path / "metrics.csv"
    assert metrics.read_rows(path, 99, metrics.digest(ROWS)) == []
    metrics.write_rows(path, ROWS)
    assert metrics.read_rows(path, 99, metrics.digest(ROWS)) == ROWS
    assert metrics.read_rows(path, 19, metrics.digest(ROWS[:1])) == ROWS[:1]
    assert metrics.read_rows(path, 9, metrics.digest([])) == []


BROKEN = {
    "a digit": lambda text: text.replace("0.25", "0.26"),
    "the last digit": lambda text: text.replace("0.3333333333333333", "0.3333333333333334"),
    "an empty last field": lambda text: text.replace("0.3333333333333333", ""),
    "an empty first measure": lambda text: text.replace("100,1.5", "100,"),
    "not a number": lambda text: text.replace("0.25", "nan"),
    "a row that is gone": lambda text: "".join(text.splitlines(True)[:2]),
    "a row twice": lambda text: text + text.splitlines(True)[-1],
    "rows in another order": lambda text: "".join(text.splitlines(True)[i] for i in (0, 2, 1)),
    "a row cut short": lambda text: text[:-20],
    "a row too long": lambda text: text.replace("7.0,,", "7.0,,,"),
    "no numbers": lambda text: text.replace("10,100", "ten,100"),
    "a step behind the last": lambda text: text.replace("20,200", "99,200"),
    "other columns": lambda _: "step,surprise\n1,2\n",
    "columns that are missing": lambda _: "step,tokens\n1,2\n",
    "a zero byte": lambda _: "\x00\n1",
}


@pytest.mark.parametrize("damage", BROKEN)
def test_measures_that_are_not_those_that_were_saved_are_refused(tmp_path, damage):
    path = tmp_path / "metrics.csv"
    metrics.write_rows(path, ROWS)
    path.write_text(BROKEN[damage](path.read_text()))
    with pytest.raises(SllmError, match=r"metrics\.csv (cannot be read|is damaged).*; remove it to continue without"):
        metrics.read_rows(path, 20, metrics.digest(ROWS))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_measures_that_are_no_file_are_refused(tmp_path, make):
    make(tmp_path / "metrics.csv")
    with pytest.raises(SllmError, match=r"metrics\.csv is not a file; remove it to continue without"):
        metrics.read_rows(tmp_path / "metrics.csv", 20, metrics.digest(ROWS))


OTHER_FAMILIES = {
    "gpt_neox": {"hidden_size": 24, "intermediate_size": 44, "num_attention_heads": 3, "rotary_pct": 0.5},
    "falcon": {"hidden_size": 24, "num_attention_heads": 6, "alibi": True, "bias": True, "parallel_attn": False},
    "mpt": {"d_model": 24, "n_heads": 3, "n_layers": 1, "max_seq_len": 16, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("model_type", OTHER_FAMILIES)
def test_every_family_learns_and_its_model_is_that_of_transformers(tmp_path, model_type):
    config = {"model_type": model_type, "vocab_size": 290, **OTHER_FAMILIES[model_type]}
    if model_type != "mpt":
        config |= {"num_hidden_layers": 1, "max_position_embeddings": 16}
    run = done(prepared(tmp_path, config=config))
    assert run.rows[-1].loss < run.rows[0].loss
    to_huggingface(run.folder / MODEL, tmp_path / "hf")
    tokens = samples_of(2)[:, :16]
    ours = jax.vmap(partial(dense_logits, Model(run.module, run.state.params)))(jnp.asarray(tokens))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(torch.tensor(tokens, dtype=torch.long)).logits
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
