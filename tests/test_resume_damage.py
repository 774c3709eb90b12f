"""A damaged resume folder gives an error or the correct result, and no kill or full disk blocks a later start."""

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sllm_jax.common import checkpoint, orbax
from sllm_jax.common.errors import SllmError
from sllm_jax.core.kv_state import init_state, is_possible
from sllm_jax.core.model import Model
from sllm_jax.evaluate import evaluation
from sllm_jax.evaluate.evaluation import Evaluation, EvaluationSettings

TEXTS = [np.random.default_rng(0).integers(0, 101, 50), np.random.default_rng(1).integers(0, 101, 30)]
HOW = EvaluationSettings("streaming", 3, 20, 16)


def begin(folder, model) -> Evaluation:
    folder.mkdir(exist_ok=True)
    return Evaluation(folder, model, TEXTS, HOW, {"model": "tiny"})


def finished(folder, model) -> np.ndarray:
    one = begin(folder, model)
    for _ in one.steps():
        pass
    return np.array(one.nll)


@pytest.fixture(scope="module")
def right(tiny, tmp_path_factory) -> np.ndarray:
    return finished(tmp_path_factory.mktemp("right"), tiny)


@pytest.fixture
def saved(tiny, tmp_path):
    """A folder with a checkpoint after two steps of four."""
    one = begin(tmp_path / "resume", tiny)
    steps = one.steps()
    next(steps)
    next(steps)
    one.save()
    return tmp_path / "resume"


def rewrite(folder, change):
    nll = np.load(folder / "nll.npy")
    np.save(folder / "nll.npy", change(nll))


NLL_DAMAGE = {
    "zeroed": lambda nll: nll * 0,
    "one value": lambda nll: np.where(np.arange(len(nll)) == 7, nll + 1e-6, nll).astype(np.float32),
    "the last of a text": lambda nll: np.where(np.arange(len(nll)) == 31, 9, nll).astype(np.float32),
    "cut short": lambda nll: nll[:-1],
    "longer": lambda nll: np.append(nll, np.float32(0)),
    "of another dtype": lambda nll: nll.astype(np.float64),
    "of big-endian numbers": lambda nll: nll.astype(">f4"),
    "integers": lambda nll: nll.view(np.int32),
    "of two dimensions": lambda nll: nll[None],
    "objects": lambda nll: np.array([1, "a"], object),
    "another's": lambda nll: nll[::-1].copy(),
}


@pytest.mark.parametrize("damage", NLL_DAMAGE)
def test_a_damaged_nll_is_never_a_number(saved, tiny, damage):
    rewrite(saved, NLL_DAMAGE[damage])
    with pytest.raises(SllmError, match=r"nll\.npy .*; remove .*resume to start over") as error:
        begin(saved, tiny)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 5, 60, 128, 200])
def test_an_nll_that_was_cut_is_never_a_number(saved, tiny, size):
    content = (saved / "nll.npy").read_bytes()
    (saved / "nll.npy").write_bytes(content[:size])
    with pytest.raises(SllmError, match=r"remove .* to start over"):
        begin(saved, tiny)


def test_an_nll_that_is_gone_is_never_a_number(saved, tiny):
    (saved / "nll.npy").unlink()
    with pytest.raises(SllmError, match=r"remove .* to start over"):
        begin(saved, tiny)


def test_a_flipped_bit_anywhere_gives_an_error_or_the_right_numbers(saved, tiny, right, tmp_path):
    rng, refused = np.random.default_rng(3), 0
    files = sorted(path for path in saved.rglob("*") if path.is_file() and path.stat().st_size)
    for i in range(40):
        copy = shutil.copytree(saved, tmp_path / f"{i}")
        path = copy / files[i % len(files)].relative_to(saved)
        content = bytearray(path.read_bytes())
        place = int(rng.integers(len(content)))
        if i % 4 == 3:
            del content[place:]
        else:
            content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(finished(copy, tiny), right, err_msg=f"{path}, byte {place}")
        except SllmError:
            refused += 1
    assert refused > 8, "damage is found"


@pytest.mark.parametrize(
    ("field", "value"), [("next_slot", -1), ("next_slot", 10**6), ("filled", 99), ("filled", -5), ("token_ids", 101)]
)
def test_a_saved_state_with_impossible_numbers_is_refused(saved, tiny, field, value):
    step = next(iter(saved.glob("checkpoints/*")))
    one = begin(saved, tiny)
    state = one._reading.state
    if field == "token_ids":
        wrong = state.replace(token_ids=jnp.full_like(state.token_ids, value))
    else:
        wrong = state.replace(rings=(state.ring.replace(**{field: jnp.full_like(getattr(state.ring, field), value)}),))
    assert not is_possible(wrong, 101)
    assert is_possible(state, 101)
    shutil.rmtree(step)
    tree = one._tree(one._reading)
    checkpoint.save(saved / "checkpoints", 7, (tree[0], wrong, tree[2]))
    with pytest.raises(SllmError, match="holds invalid numbers; remove it to start over"):
        begin(saved, tiny)


def test_a_state_with_a_nan_is_impossible(tiny):
    state = init_state(tiny.config, 3, 20, jnp.float32)
    assert is_possible(state, 101)
    assert not is_possible(state.replace(k=(state.k[0].at[0, 0, 0].set(jnp.nan), *state.k[1:])), 101)


@pytest.mark.parametrize(
    ("next_slot", "filled", "possible"),
    [
        (0, 0, True),
        (2, 2, True),
        (3, 3, True),
        (23, 20, True),
        (5, 3, True),  # after evict_for_space
        (1, 20, False),  # sinks would be overwritten
        (0, 3, False),
        (2, 1, False),
        (1, 2, False),
    ],
)
@pytest.mark.parametrize("streams", [None, 2])
def test_the_next_slot_of_a_state_follows_from_its_sinks(tiny, next_slot, filled, possible, streams):
    state = init_state(tiny.config, 3, 20, jnp.float32, streams)
    ring = state.ring.replace(next_slot=state.ring.next_slot + next_slot, filled=state.filled + filled)
    state = state.replace(rings=(ring,))
    assert is_possible(state, 101) == possible


@pytest.mark.parametrize("done", [[-1, 0], [50, 0], [10**6, 10**6]])
def test_impossible_counts_of_tokens_are_refused(saved, tiny, done):
    one = begin(saved, tiny)
    tree = one._tree(one._reading)
    shutil.rmtree(saved / "checkpoints")
    checkpoint.save(saved / "checkpoints", 7, (np.array(done, np.int32), *tree[1:]))
    with pytest.raises(SllmError, match="holds invalid numbers"):
        begin(saved, tiny)


def npy(header, nll) -> bytes:
    """A .npy file with a header of one's own."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": nll.shape} | header)
    return file.getvalue() + nll.tobytes()


def test_a_fortran_ordered_nll_is_the_same_row(saved, tiny, right):
    (saved / "nll.npy").write_bytes(npy({"fortran_order": True}, np.load(saved / "nll.npy")))
    np.testing.assert_array_equal(finished(saved, tiny), right)


@pytest.mark.parametrize("shape", [(39, 2), (2, 39), (1, 78)])
def test_a_fortran_ordered_nll_of_two_dimensions_is_refused(saved, tiny, shape):
    nll = np.load(saved / "nll.npy")
    (saved / "nll.npy").write_bytes(npy({"fortran_order": True, "shape": shape}, nll))
    with pytest.raises(SllmError, match=r"nll\.npy is damaged: it holds float32 of shape .*; remove .* to start over"):
        begin(saved, tiny)


OWN = {"settings.json": "file", "nll.npy": "file", "checkpoints": "folder"}


def put(path, kind):
    """A pipe, a folder or a file in the place of what is at `path`."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "folder": os.mkdir, "file": Path.touch}[kind](path)


@pytest.mark.parametrize("state", ["a checkpoint", "no checkpoint", "nothing else"])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in OWN for kind in ("pipe", "folder", "file")])
def test_what_is_no_file_or_no_folder_where_one_should_be_is_refused(saved, tiny, name, kind, state):
    """Opening a pipe would wait for ever."""
    if kind == OWN[name]:
        return
    if state == "no checkpoint":
        shutil.rmtree(saved / "checkpoints")
    if state == "nothing else":
        shutil.rmtree(saved)
        saved.mkdir()
    put(saved / name, kind)
    with pytest.raises(SllmError, match=rf"{name} is not a {OWN[name]}; .*name a new folder"):
        begin(saved, tiny)
    assert (saved / name).exists()


def test_a_pipe_in_a_checkpoint_is_damage(saved, tiny):
    put(next(saved.glob("checkpoints/*/params/manifest.ocdbt")), "pipe")
    with pytest.raises(SllmError, match="is damaged or belongs to another run"):
        begin(saved, tiny)


@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"])
def test_a_checkpoint_that_was_cut_is_not_talked_about_by_libraries(saved, tiny, right, name, caplog):
    """Their lines would stand on standard error beside the one sentence."""
    path = next(saved.glob(f"checkpoints/*/params/{name}"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    if name == "_CHECKPOINT_METADATA":  # says nothing about the arrays
        np.testing.assert_array_equal(finished(saved, tiny), right)
    else:
        with pytest.raises(SllmError, match="is damaged or belongs to another run"):
            begin(saved, tiny)
    assert [record.message for record in caplog.records if record.name == "absl"] == []


@pytest.mark.parametrize("name", ["0abc", "00000007.bak", "0", "7", "\u0663", "00000007 "])
def test_a_folder_among_the_checkpoints_that_is_none_changes_nothing(saved, tiny, right, name):
    shutil.copytree(next(saved.glob("checkpoints/*")), saved / "checkpoints" / name)
    (saved / "checkpoints" / name / "params" / "manifest.ocdbt").write_bytes(b"")
    assert begin(saved, tiny).done > 0
    np.testing.assert_array_equal(finished(saved, tiny), right)


# Two processes that do not know of each other: a file system without locks.


def test_a_second_start_leaves_the_nll_of_the_first_alone(tiny, right, tmp_path):
    first = begin(tmp_path / "one", tiny)
    steps = first.steps()
    next(steps)
    found = np.array(first.nll)
    begin(tmp_path / "one", tiny)
    np.testing.assert_array_equal(first.nll, found)
    for _ in steps:
        pass
    np.testing.assert_array_equal(first.nll, right)


@pytest.mark.parametrize(("who_saves", "refused"), [((0,), True), ((1,), False), ((0, 1), False), ((1, 0), False)])
def test_two_at_once_end_in_an_error_or_the_right_numbers(tiny, right, tmp_path, who_saves, refused):
    """The file is the second's: a checkpoint of the first does not go with it unless both found the same."""
    both = [begin(tmp_path / "one", tiny) for _ in range(2)]
    for number in who_saves:
        next(both[number].steps())
        both[number].save()
    if refused:
        with pytest.raises(SllmError, match=r"nll\.npy is damaged: .*; remove .* to start over"):
            begin(tmp_path / "one", tiny)
    else:
        np.testing.assert_array_equal(finished(tmp_path / "one", tiny), right)


# Folders as a kill or a full disk leaves them.


def test_a_kill_at_any_place_of_the_start_blocks_nothing(tiny, right, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    for place in ("_write_settings", "load_json", "_write_zeros", "_map_nll"):
        folder = tmp_path / place
        with monkeypatch.context() as patch:
            patch.setattr(evaluation, place, lambda *_: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                begin(folder, tiny)
        np.testing.assert_array_equal(finished(folder, tiny), right)


@pytest.mark.parametrize("written", [0, 40, 128, 200])
def test_a_full_disk_at_the_start_blocks_nothing(tiny, right, tmp_path, written):
    begin(tmp_path / "one", tiny)
    path = tmp_path / "one" / "nll.npy"
    path.write_bytes(path.read_bytes()[:written])
    np.testing.assert_array_equal(finished(tmp_path / "one", tiny), right)


def test_empty_settings_block_nothing(tiny, right, tmp_path):
    begin(tmp_path / "one", tiny)
    (tmp_path / "one" / "settings.json").write_bytes(b"")
    np.testing.assert_array_equal(finished(tmp_path / "one", tiny), right)


def test_a_checkpoint_without_settings_is_not_gone_on_with(saved, tiny, right):
    """It may be another model's, and a mixture of two would be a wrong number."""
    other = Model(tiny.module, jax.tree.map(lambda leaf: leaf * 1.1, tiny.params), tiny.hf_config)
    (saved / "settings.json").write_bytes(b"")
    expected = finished(saved.with_name("other"), other)
    assert not np.array_equal(expected, right)
    np.testing.assert_array_equal(finished(saved, other), expected)


def test_a_kill_while_the_checkpoints_are_removed_blocks_nothing(saved, tiny, right, monkeypatch):
    one = begin(saved, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            one.remove()
    np.testing.assert_array_equal(finished(saved, tiny), right)


def test_a_kill_at_any_place_of_the_end_blocks_nothing(saved, tiny, right, tmp_path):
    names = ("checkpoints", "nll.npy", "settings.json")
    for count in range(len(names) + 1):
        copy = shutil.copytree(saved, tmp_path / f"{count}")
        for name in names[:count]:
            shutil.rmtree(copy / name) if name == "checkpoints" else (copy / name).unlink()
        np.testing.assert_array_equal(finished(copy, tiny), right)


def test_the_end_removes_the_checkpoints_first(saved, tiny, monkeypatch):
    one, removed = begin(saved, tiny), []
    monkeypatch.setattr(evaluation.shutil, "rmtree", lambda path, **_: removed.append(path.name))
    monkeypatch.setattr(evaluation.Path, "unlink", lambda path, **_: removed.append(path.name))
    one.remove()
    assert removed == [".checkpoints.discarded"] * 2 + ["nll.npy", "settings.json"]
    assert not (saved / "checkpoints").exists(), "gone in one step"


def test_an_nll_of_somebody_else_is_left_alone(tiny, tmp_path):
    np.save(tmp_path / "nll.npy", np.ones(3))
    with pytest.raises(SllmError, match="holds something other than an evaluation; name a new folder"):
        begin(tmp_path, tiny)
    assert np.load(tmp_path / "nll.npy").tolist() == [1, 1, 1]


# Training's checkpoints are the same.


@pytest.mark.parametrize("change", [0, 1, 2])
def test_a_checkpoint_with_another_array_is_refused(tmp_path, change):
    state = {"a": np.arange(5.0), "b": np.arange(3)}
    checkpoint.save(tmp_path, 1, state)
    arrays = {tensor.name: tensor.read() for tensor in orbax.tensors(tmp_path / "00000001")}
    shutil.rmtree(tmp_path / "00000001")
    name = sorted(arrays)[change]
    damaged = arrays | {name: arrays[name] + np.ones_like(arrays[name])}
    orbax.save(tmp_path / "00000001", damaged)
    with pytest.raises(SllmError, match="00000001 is damaged or belongs to another run; remove it"):
        checkpoint.restore(tmp_path, state)


@pytest.mark.parametrize("change", ["one more", "another shape", "another dtype", "another name"])
def test_a_checkpoint_is_compared_before_it_is_read(tmp_path, monkeypatch, change):
    """An array that is not of the state may be larger than the memory."""
    state = {"a": np.arange(5.0), "b": np.arange(3)}
    checkpoint.save(tmp_path, 1, state)
    found, read = list(orbax.tensors(tmp_path / "00000001")), []
    found[0] = {
        "one more": found[0],
        "another shape": replace(found[0], shape=(2**40, *found[0].shape[1:])),
        "another dtype": replace(found[0], dtype="float16"),
        "another name": replace(found[0], name="3-00009"),
    }[change]
    found += [replace(found[0], name="3-00002")] if change == "one more" else []
    noted = [replace(one, read=lambda one=one: read.append(one.name) or one.read()) for one in found]
    with monkeypatch.context() as patch:
        patch.setattr(orbax, "tensors", lambda _: iter(noted))
        with pytest.raises(SllmError, match="00000001 is damaged or belongs to another run; remove it"):
            checkpoint.restore(tmp_path, state)
    assert read == []
    np.testing.assert_array_equal(checkpoint.restore(tmp_path, state)["a"], state["a"])
