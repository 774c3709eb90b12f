"""Kill commands at random moments, imports included, and check that nothing is lost, incomplete or left behind.

    python tests/measure_kills.py /tmp/kills --kills 200 --seed 0

Each command is killed up to `CHAIN` times, by SIGKILL or SIGTERM, and started again as users would; then it runs to its
end. After each kill, its output must be complete or absent, and its exit code correct. At the end, the result must be
bitwise equal to that of an uninterrupted run, and no temporary file may be left. Started again with the same folder,
this script continues. It prints a table; the exit code is 1 if anything failed.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from training import CONFIG, write_text

DATA = Path(__file__).resolve().parent / "data"
CHAIN = 4
SAVES_OFTEN = """
from sllm_jax.common.signals import leave_on_signals
leave_on_signals()
from sllm_jax import cli
from sllm_jax.cli import perplexity
perplexity.SAVED_EVERY = 0.3
cli.main()
"""


@dataclass(frozen=True)
class Job:
    """A command in a folder, and what of its result must be the same whatever happened."""

    share: float  # of all kills
    arguments: Callable[[Path], list[object]]
    result: Callable[[Path, str], Mapping[str, object]]  # of a folder and standard output; what is absent is left out
    whole: bool = True  # a result that is there before the end is the whole one


def arrays_of(folder):
    """The parameters of a converted checkpoint, by name; none if it is absent."""
    from sllm_jax.common import orbax

    return {one.name: one.read().tobytes() for one in orbax.tensors(folder)} if folder.exists() else {}


def files_of(place, *patterns):
    return {str(path.relative_to(place)): path.read_bytes() for one in patterns for path in sorted(place.glob(one))}


def converted(place, _):
    return arrays_of(place / "out") | files_of(place, "out/*.json")


def trained(place, _):
    """The model, and the measures but the speed; these grow."""
    return arrays_of(place / "run/model") | files_of(place, "run/settings.json", "run/learned.npy", "run/model/*.json")


def reproduced(place, _):
    """Figures that are not speeds."""
    names = ("fig2", "fig3", "table1", "table2", "table6", "streameval")
    for folder in (place / "all").glob("[!.]*/"):
        assert {path.suffix for path in folder.iterdir()} == {".csv", ".md", ".png"}, folder
    return files_of(place, *(f"all/{name}/{name}.csv" for name in names))


def train_arguments(place):
    resume = ["--resume"] if (place / "run").exists() else []
    sizes = ["--steps", 40, "--batch-size", 4, "--warmup-steps", 2, "--learning-rate", 0.01, "--save-every", 4]
    return ["train", place / "text.txt", "--config", place / "config.json", "--out", place / "run", *sizes, *resume]


def perplexity_arguments(place):
    sizes = ["--model", DATA / "tiny-llama", "--recent-size", 20, "--chunk-size", 7, "--tokens", place / "tokens.npy"]
    return ["perplexity", *sizes, "--nll-out", place / "nll.npy", "--resume", place / "kept"]


def generate_arguments(place):
    tokenizer = ["--tokenizer", DATA / "tiny-tokenizer-spm/tokenizer.model"]  # which is converted in a scratch folder
    sizes = ["--max-tokens", 5_000, "--ignore-eos", "--temperature", 1, "--recent-size", 50]
    return ["generate", "--model", DATA / "tiny-llama", *tokenizer, *sizes]


def reproduce_arguments(place):
    sizes = ["--max-tokens", 150, "--lines", 40, "--cache-size", 32, "--recompute-every", 20, "--dense-tokens", 100]
    return [
        "reproduce",
        "all",
        "--model",
        DATA / "tiny-llama",
        "--text",
        place / "text.txt",
        *sizes,
        "--out",
        place / "all",
    ]


JOBS = {
    "convert": Job(0.25, lambda place: ["convert", DATA / "tiny-llama", place / "out"], converted),
    "perplexity": Job(0.25, perplexity_arguments, lambda place, _: files_of(place, "nll.npy")),
    "train": Job(0.2, train_arguments, trained),
    "generate": Job(0.2, generate_arguments, lambda _, text: {"text": text}, whole=False),
    "reproduce": Job(0.1, reproduce_arguments, reproduced),
}


def prepared(place):
    """A folder with what the commands read."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "tmp").mkdir(parents=True)
    write_text(place)
    (place / "config.json").write_text(json.dumps(CONFIG))
    np.save(place / "tokens.npy", np.random.default_rng(0).integers(3, 420, 6_000))
    return place


def run(job, place, cache, kill=None):
    """The process of a command, ended; `kill` is a signal and the seconds until then."""
    environment = os.environ | {"TMPDIR": str(place / "tmp"), "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_ENABLE_COMPILATION_CACHE", None)
    program = ["-c", SAVES_OFTEN] if job == "perplexity" else ["-m", "sllm_jax"]
    command = [sys.executable, *program, *map(str, JOBS[job].arguments(place))]
    with (place / "stdout").open("w") as out, (place / "stderr").open("w") as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        try:
            code = process.wait(kill[1] if kill else None)
        except subprocess.TimeoutExpired:
            process.send_signal(kill[0])
            code = process.wait(120)
    code = 128 - code if code < 0 else code  # as a shell says it
    return code, (place / "stdout").read_text(errors="ignore"), (place / "stderr").read_text()


def temporaries(*folders):
    patterns = (".*.tmp", ".*.lock", "*.running", "*orbax-checkpoint-tmp*")
    return [path for folder in folders for pattern in patterns for path in folder.rglob(pattern)]


def is_done(ended):
    """Whether a command came to its end, or was killed after it had written its folder, which is refused then."""
    code, _, err = ended
    return code == 0 or (code == 2 and "exists already" in err)


def problems_of_a_kill(job, place, expected, ended, number, before):
    """What is wrong after a kill; `before` has the temporary files that an earlier one had left."""
    code, text, err = ended
    found = JOBS[job].result(place, text)
    if code != 128 + number and not is_done(ended):
        yield f"exit code {code}"
    if "Traceback" in err or "Error" in err:
        yield err
    if code == 143 and (left := set(temporaries(place)) - before):
        yield f"left after SIGTERM: {left}"
    if JOBS[job].whole and any(expected[name] != content for name, content in found.items()):
        yield "what is there is not whole"
    if "text" in found and not expected["text"].startswith(text.removesuffix("\n")):
        yield "another text"


def chain(job, place, cache, seconds, expected, drawn, kills=CHAIN):
    """Rows of one command that is killed and at last left to end: its name, signal, seconds, exit code, problems."""
    for _ in range(kills):
        kill = drawn.choice((signal.SIGKILL, signal.SIGTERM)), drawn.uniform(0, seconds)
        before = set(temporaries(place))
        ended = run(job, place, cache, kill)
        found = problems_of_a_kill(job, place, expected, ended, kill[0], before)
        yield job, kill[0].name, f"{kill[1]:.3f}", ended[0], "; ".join(found)
        if is_done(ended):
            break
    code, text, err = ended if is_done(ended) else run(job, place, cache)
    problems = [] if is_done((code, text, err)) else [f"did not end: {err}"]
    problems += [] if JOBS[job].result(place, text) == expected else ["another result"]
    problems += [f"left: {left}"] if (left := temporaries(place, cache)) else []
    yield job, "end", "", code, "; ".join(problems)


def measure(folder, job, kills, seed):
    """Do what is left of `kills` of one command."""
    cache, log = folder / "cache", folder / f"{job}.csv"
    whole = prepared(folder / f"{job}-whole")
    for _ in range(2):  # the second with its programs compiled
        shutil.rmtree(whole)
        begun = prepared(whole) and time.perf_counter()
        code, text, err = run(job, whole, cache)
        seconds = time.perf_counter() - begun
        assert code == 0, err
    expected = JOBS[job].result(whole, text)
    assert expected
    number = 0
    while True:
        rows = rows_of(log)
        done = sum(row[3] in ("137", "143") for row in rows)
        number = sum(row[1] == "end" for row in rows)
        print(f"{job}: {done} of {kills} kills, {sum(bool(row[4]) for row in rows)} problems", flush=True)
        if done >= kills:
            return
        drawn = random.Random(f"{seed} {job} {number}")
        place = prepared(folder / f"{job}-{number}")
        found = list(chain(job, place, cache, seconds * adapted(rows), expected, drawn))
        with log.open("a", newline="") as file:
            csv.writer(file).writerows(found)
        for row in found:
            if row[4]:
                print(*row, flush=True)
        if not any(row[4] for row in found):
            shutil.rmtree(place)  # else it stays to be looked at


def adapted(rows):
    """What the time of a whole run is multiplied by, for the machine's speed changes: most moments are to hit."""
    factor = 1.0
    for row in rows:
        factor *= 1 if row[1] == "end" else 0.8 if row[3] == "0" else 1.1
    return min(max(factor, 0.1), 4)


def rows_of(log):
    if not log.exists():
        return []
    with log.open(newline="") as file:
        return list(csv.reader(file))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=JOBS, action="append")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for job in asked.only or JOBS:
        measure(asked.folder.resolve(), job, round(asked.kills * JOBS[job].share), asked.seed)
    print("\n| command | SIGKILL | SIGTERM | runs that ended | problems |\n|---|---|---|---|---|")
    wrong = 0
    for job in JOBS:
        rows = rows_of(asked.folder / f"{job}.csv")
        kinds = [sum(row[3] == code for row in rows) for code in ("137", "143")]
        problems = sum(bool(row[4]) for row in rows)
        wrong += problems
        print(f"| {job} | {kinds[0]} | {kinds[1]} | {sum(row[1] == 'end' for row in rows)} | {problems} |")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
