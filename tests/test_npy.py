"""False headers of .npy files are refused before anything is allocated, by every reader of such files."""

import io

import numpy as np
import pytest

from sllm_jax.cli.perplexity import read_token_ids
from sllm_jax.common import npy
from sllm_jax.common.errors import SllmError
from sllm_jax.evaluate.evaluation import _map_nll


def content(header: str | bytes, version: int = 1, data: bytes = bytes(80), length: int | None = None) -> bytes:
    """A .npy file with a header of one's own."""
    header = header.encode() if isinstance(header, str) else header
    size = (len(header) if length is None else length).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def described(shape="(10,)", dtype="'<i8'", more=""):
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}{more}}}\n"


HOSTILE = {
    "a shape of 10^12": content(described(f"({10**12},)")),
    "sizes whose product overflows": content(described(f"({2**40}, {2**40})")),
    "one number too many": content(described("(11,)")),
    "a negative size": content(described("(-1,)")),
    "two negative sizes": content(described("(-2, -5)")),
    "no sizes": content(described("None")),
    "objects": content(described(dtype="'|O'")),
    "objects in a structure": content(described(dtype="[('a', '|O')]")),
    "texts": content(described(dtype="'<U2'")),
    "numbers of no size": content(described(dtype="'|V0'")),
    "another version": content(described(), version=2),
    "a header of 1 GB": content(described(), version=2, length=2**30),
    "a header beyond the file": content(described(), length=60_000),
    "a version of the future": content(described(), version=9),
    "a header that is nested": content("(" * 5000),
    "a header that is a program": content("__import__('os')"),
    "another key": content(described(more=", 'a': 1")),
    "nothing": b"",
    "a beginning": b"\x93NUM",
}
READERS = {
    "tokens": read_token_ids,
    "nll": lambda path: _map_nll(path, 10),
}


@pytest.fixture(autouse=True)
def nothing_allocated(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the numbers were read")

    monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
    monkeypatch.setattr(np.lib.format, "read_array", refuse)
    monkeypatch.setattr(np, "load", refuse)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header(tmp_path, hostile, read):
    (tmp_path / "a.npy").write_bytes(hostile)
    with pytest.raises(SllmError, match=r"a\.npy is not a \.npy file of numbers \([^\n]*\); ") as error:
        read(tmp_path / "a.npy")
    assert "were read" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_from_a_pipe(tmp_path, monkeypatch, hostile):
    monkeypatch.setattr(npy, "is_file", lambda _: False)
    (tmp_path / "a.npy").write_bytes(hostile)
    with pytest.raises(SllmError, match=r"is not a \.npy file of numbers") as error:
        npy.read_array(tmp_path / "a.npy", "give another")
    assert "were read" not in str(error.value)


def test_a_pipe_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "is_file", lambda _: False)
    monkeypatch.setattr(npy, "MAX_PIPED", 100)
    (tmp_path / "a.npy").write_bytes(bytes(101))
    with pytest.raises(SllmError, match=r"has more than 100 bytes"):
        npy.read_array(tmp_path / "a.npy", "give another")


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2", "<f4", "?"])
def test_numbers_of_all_kinds_are_read(tmp_path, monkeypatch, dtype):
    monkeypatch.undo()
    numbers = np.arange(10).astype(dtype)
    file = io.BytesIO()
    np.save(file, numbers)
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    assert np.array_equal(npy.map_array(tmp_path / "a.npy", ""), numbers)
    monkeypatch.setattr(npy, "is_file", lambda _: False)
    assert np.array_equal(npy.read_array(tmp_path / "a.npy", ""), numbers)
