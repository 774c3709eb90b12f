"""Shared by all steps: arguments, and the results file that each step updates as it runs."""

import argparse
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = "results.json"


class Record:
    """What a step has found: its part of results.json, which is written anew at every change."""

    def __init__(self, out: Path, step: str) -> None:
        self.path, self.step, self.failed = out / RESULTS, step, False
        self.others = read_results(out)
        self.found: dict[str, Any] = {}
        self.lock = threading.Lock()
        self.note()

    def note(self, **figures: Any) -> None:
        """Figures by name."""
        with self.lock:
            self.found |= figures
            self._write()

    def add(self, rows: str, row: dict[str, Any]) -> None:
        """One more row of a table."""
        with self.lock:
            self.found.setdefault(rows, []).append(row)
            self._write()

    def attempt(self, rows: str, about: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> bool:
        """One more row of a table: what `measure` gives, or why it gives nothing; whether it gave anything."""
        try:
            self.add(rows, about | measure())
        except Exception as error:
            traceback.print_exc()
            self.failed = True
            self.add(rows, about | {"error": sentence(error)})
            return False
        return True

    def _write(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.others | {self.step: self.found}, indent=1, default=str) + "\n")
        os.replace(new, self.path)


def read_results(out: Path) -> dict[str, Any]:
    """What the steps so far have found."""
    path = out / RESULTS
    return json.loads(path.read_text()) if path.exists() else {}


def run(measure: Callable[[Record, bool], None]) -> None:
    """Run a step, `measure(record, tiny)`, as the arguments of the command say; exit code 1 if anything failed."""
    options = argparse.ArgumentParser()
    options.add_argument("out", type=Path)
    options.add_argument("--tiny", action="store_true", help="small sizes, for a dry run on a CPU")
    asked = options.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    record = Record(asked.out, Path(sys.argv[0]).stem)
    try:
        measure(record, asked.tiny)
    except Exception as error:
        record.note(error=sentence(error))
        record.failed = True
        traceback.print_exc()
    sys.exit(int(record.failed))


def sentence(error: Exception) -> str:
    """An exception in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
