"""Fuzz every reader: damaged inputs in separate processes, with limits on time and memory.

    python tests/fuzz/run.py --inputs 100000 --out fuzz

After an interruption, the same command continues. OUT has a line for each input; `--replay TARGET NUMBER` reads one
again. The exit code is 1 if there were failures.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.targets import TARGETS
from fuzz.trial import damaged, judge, pristine

SECONDS, MEMORY = 10, 2**30  # of one input, and above what its process had before the first one
START_SECONDS = 120


def main() -> None:
    """Run, replay, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all, the same number for each target")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "NUMBER"))
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        name, begin, end = options.work
        work(name, options.seed, int(begin), int(end))
    elif options.replay:
        name, number = options.replay
        with tempfile.TemporaryDirectory() as folder:
            valid = pristine(name, Path(folder) / "valid")
            print(judge(name, damaged(name, options.seed, int(number), valid, Path(folder) / "damaged")))
    else:
        sys.exit(run(options.targets, options.inputs // len(options.targets), options.seed, options.out))


def work(name: str, seed: int, begin: int, end: int) -> None:
    """Judge inputs one after another, a line for each on standard output. What parsers print goes to standard error."""
    with tempfile.TemporaryDirectory() as folder, os.fdopen(os.dup(1), "w") as verdicts:
        os.dup2(2, 1)
        valid = pristine(name, Path(folder) / "valid")
        print(json.dumps(["ready", judge(name, valid)]), file=verdicts, flush=True)
        for number in range(begin, end):
            place = damaged(name, seed, number, valid, Path(folder) / "damaged")
            print(json.dumps([number, judge(name, place)]), file=verdicts, flush=True)


def run(targets: list[str], each: int, seed: int, out: Path) -> int:
    """All inputs of all targets that are not judged yet; the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    for name in targets:
        results = out / f"{name.replace(' ', '_')}.jsonl"
        while (done := len(lines(results))) < each:
            some(name, seed, done, each, results)
    rows = [
        (name, Counter(kind_of(line) for line in lines(out / f"{name.replace(' ', '_')}.jsonl"))) for name in targets
    ]
    print("| target | inputs | refused | accepted | failures |\n|---|---|---|---|---|")
    for name, counts in rows:
        print(f"| {name} | {counts.total()} | {counts['refused']} | {counts['accepted']} | {counts['failed']} |")
    failures = sum(counts["failed"] for _, counts in rows)
    print(f"{sum(counts.total() for _, counts in rows)} inputs, {failures} failures")
    return 1 if failures else 0


def some(name: str, seed: int, begin: int, end: int, results: Path) -> None:
    """The inputs from `begin` on, until a process is given up or all are judged."""
    command = [sys.executable, __file__, "--seed", str(seed), "--work", name, str(begin), str(end)]
    with (
        results.open("a") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process,
    ):
        number, baseline, since = begin - 1, 0, time.monotonic()
        while True:
            line = process.stdout.readline() if select.select([process.stdout], [], [], 0.2)[0] else None
            limit = SECONDS if baseline else START_SECONDS
            fault = None
            if line is None:
                taken = memory_of(process.pid) - baseline if baseline else 0
                late = time.monotonic() - since > limit
                fault = f"more than {limit} s" if late else f"{taken} bytes of memory" if taken > MEMORY else None
            elif not line:
                fault = None if number == end - 1 else f"the process ended with {process.wait()}"
            else:
                number, verdict = json.loads(line)
                since = time.monotonic()
                if number == "ready":
                    assert verdict == "accepted", f"{name}: the valid input is {verdict}"
                    number, baseline = begin - 1, memory_of(process.pid)
                else:
                    write(file, name, number, verdict, end)
                continue
            if fault:
                assert baseline, f"{name}: the process does not start"
                process.kill()
                write(file, name, number + 1, fault, end)
            if fault or line is not None:
                return


def write(file, name: str, number: int, verdict: str, end: int) -> None:
    """Keep what came of an input."""
    file.write(json.dumps([number, verdict]) + "\n")
    file.flush()
    if verdict not in ("accepted", "refused"):
        print(f"{name}, input {number}: {verdict}", flush=True)
    if (number + 1) % 500 == 0:
        print(f"{name}: {number + 1} of {end}", flush=True)


def lines(results: Path) -> list[str]:
    """The verdicts so far."""
    return [json.loads(line)[1] for line in results.read_text().splitlines()] if results.exists() else []


def kind_of(verdict: str) -> str:
    return verdict if verdict in ("accepted", "refused") else "failed"


def memory_of(pid: int) -> int:
    """Resident bytes; 0 if the process has ended."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    main()
