"""A short run of the fuzzer on every reader; `python tests/fuzz/run.py` is the long one."""

import pytest
from fuzz.targets import TARGETS
from fuzz.trial import ACCEPTED, REFUSED, damaged, judge, pristine

INPUTS = {"resume": 6, "orbax": 10}  # slow ones
EACH = 25


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return tmp_path_factory.mktemp("valid")


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_are_refused_in_a_sentence(name, valid, tmp_path):
    folder = pristine(name, valid / name.replace(" ", "_"))
    assert judge(name, damaged_as_it_is(folder, tmp_path)) == ACCEPTED, "the input as it is"
    verdicts = {
        number: judge(name, damaged(name, 1, number, folder, tmp_path / "damaged"))
        for number in range(INPUTS.get(name, EACH))
    }
    faults = {number: verdict for number, verdict in verdicts.items() if verdict not in (ACCEPTED, REFUSED)}
    assert not faults
    assert REFUSED in verdicts.values(), "some of the damage is found"


def damaged_as_it_is(folder, tmp_path):
    import shutil

    return shutil.copytree(folder, tmp_path / "as it is")


def test_an_input_is_the_same_for_the_same_seed(valid, tmp_path):
    folder = pristine("config", valid / "config")
    one, other = (
        (damaged("config", 1, 3, folder, tmp_path / place) / "config.json").read_bytes() for place in ("a", "b")
    )
    assert one == other


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(RecursionError("deep"), "RecursionError: deep"), (BaseException("panic"), "BaseException: panic")],
)
def test_any_other_exception_is_a_fault(monkeypatch, tmp_path, error, verdict):
    def read(_):
        raise error

    monkeypatch.setitem(TARGETS, "broken", type(TARGETS["config"])(lambda folder: None, read))
    assert judge("broken", tmp_path) == verdict
