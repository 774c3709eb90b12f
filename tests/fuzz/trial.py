"""One trial: a damaged input from a seed, read and judged."""

from __future__ import annotations

import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np
from fuzz.mutations import mutate
from fuzz.targets import TARGETS

from sllm_jax.common.errors import SllmError

ACCEPTED, REFUSED = "accepted", "refused"
MAX_MESSAGE = 2000  # characters of an error


def pristine(name: str, folder: Path) -> Path:
    """The valid input of a target, made once."""
    if not folder.exists():
        folder.mkdir(parents=True)
        TARGETS[name].build(folder)
    return folder


def damaged(name: str, seed: int, number: int, valid: Path, place: Path) -> Path:
    """Input `number` of a target in the folder `place`: the same for the same seed."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(valid, place)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    pattern = TARGETS[name].damaged
    files = sorted(path for path in place.rglob(pattern.rpartition("/")[2]) if path.is_file())
    files = [path for path in files if pattern == "*" or path.match(pattern) or "**" in pattern]
    mutate(files[int(rng.integers(len(files)))], rng)
    return place


def judge(name: str, place: Path) -> str:
    """What reading gives: ACCEPTED, REFUSED, or what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[name].read(place)
    except SllmError as error:
        message = str(error)
        return REFUSED if 0 < len(message) <= MAX_MESSAGE else f"a message of {len(message)} characters"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # every other exception is a fault
        return f"{type(error).__name__}: {str(error)[:300]}"
    return ACCEPTED
