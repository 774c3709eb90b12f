"""`sllm-jax train`: output, interruption and resumption, and refused input."""

import csv
import json
import lzma
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
from checkpoints import assert_same
from progress_lines import without_progress
from training import CONFIG, write_text

from sllm_jax.cli import train as command
from sllm_jax.loading.pretrained import load
from sllm_jax.train import preparation
from sllm_jax.train.run import TrainingRun

STEPS = 30
RESULT = re.compile(r"held back: \d\.\d{4} nats per token, \d\.\d{4} bits per byte\n")


@dataclass
class Place:
    """A folder with a text and a config, and the arguments of a small run there."""

    folder: object
    options: dict = field(
        default_factory=lambda: {
            "--steps": STEPS,
            "--batch-size": 4,
            "--warmup-steps": 2,
            "--learning-rate": 0.01,
            "--save-every": 3,
        }
    )

    @property
    def out(self):
        return self.folder / "out"

    def arguments(self, *more, text=None, **changes):
        options = {"--config": self.folder / "config.json", "--out": self.out} | self.options
        options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        named = [str(part) for option in options.items() for part in option]
        return ["train", str(text or self.folder / "text.txt"), *named, *map(str, more)]

    def config(self, **changes):
        entries = {name: value for name, value in (CONFIG | changes).items() if value is not None}
        (self.folder / "config.json").write_text(json.dumps(entries))

    def checkpoints(self):
        return sorted(path.name for path in (self.out / "checkpoints").iterdir())

    def measures(self):
        with (self.out / "metrics.csv").open() as file:
            return [{**row, "tokens_per_second": ""} for row in csv.DictReader(file)]


def place_in(folder):
    place = Place(folder)
    write_text(folder)
    place.config()
    return place


@pytest.fixture
def place(tmp_path):
    return place_in(tmp_path)


def in_a_process(arguments):
    done = subprocess.run([sys.executable, "-m", "sllm_jax", *arguments], capture_output=True, text=True)
    done.stderr = without_progress(done.stderr)
    return done


@pytest.fixture
def train(place, run):
    def train(*more, **changes):
        return run(*place.arguments(*more, **changes))

    return train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of its own process that nothing interrupts: its place and what it printed."""
    place = place_in(tmp_path_factory.mktemp("whole"))
    process = in_a_process(place.arguments())
    assert process.returncode == 0, process.stderr
    return place, process


def assert_ends_as(place, whole):
    assert_same(load(place.out / "model")[0].params, load(whole.out / "model")[0].params)
    assert place.checkpoints() == [f"{STEPS:08}"]


def assert_refused(result, *parts):
    """Exit code 2, nothing on standard output and one line on standard error."""
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    for part in parts:
        assert part in err


def interrupt_after(monkeypatch, step):
    """A Ctrl-C arrives while this step is under way."""
    steps = TrainingRun.steps

    def interrupted(run):
        for done, loss in steps(run):
            if done == step:
                signal.raise_signal(signal.SIGINT)
            yield done, loss

    monkeypatch.setattr(TrainingRun, "steps", interrupted)


def test_a_run_prints_its_result_alone(whole):
    place, process = whole
    assert RESULT.fullmatch(process.stdout)
    assert process.stderr == f"wrote {place.out / 'model'}\n"
    names = {path.name for path in place.out.iterdir()}
    expected = ["checkpoints", "metrics.csv", "loss.png", "model", "settings.json", "tokenizer", "held_back.txt"]
    assert names == {*expected, "learned.npy", "held_back.npy"}
    assert {int(row["step"]) for row in place.measures()} == {*range(3, STEPS + 1, 3), 10, 20}


def test_a_finished_run_is_taken_up_in_vain(whole, run):
    place, process = whole
    assert run(*place.arguments("--resume")) == (0, process.stdout, process.stderr)


def test_a_killed_run_ends_as_one_left_alone(train, place, whole):
    with subprocess.Popen(
        [sys.executable, "-m", "sllm_jax", *place.arguments()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while not list(place.out.glob("checkpoints/0*")):
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (place.out / "model").exists(), "it was killed too late"
    assert train("--resume") == (0, whole[1].stdout, f"wrote {place.out / 'model'}\n")
    assert_ends_as(place, whole[0])
    assert place.measures() == whole[0].measures()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2, 4, 8])
def test_ctrl_c_at_any_time_is_one_line_at_most(place, seconds):
    arguments = place.arguments(steps=100_000, save_every=50)
    with subprocess.Popen([sys.executable, "-m", "sllm_jax", *arguments], stderr=subprocess.PIPE) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert len(err.splitlines()) <= 1, err
    assert {path.name for path in place.folder.iterdir()} - {"out"} == {"text.txt", "config.json"}


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(train, place, whole, monkeypatch):
    with monkeypatch.context() as interrupted:
        interrupt_after(interrupted, 7)
        train()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, unlimited[1]))
    try:
        full = in_a_process(place.arguments("--resume"))  # here the logs of libraries would not be seen
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert_refused((full.returncode, full.stdout, full.stderr), "could not be written")
    assert place.checkpoints() == ["00000007"]
    assert train("--resume")[0] == 0
    assert_ends_as(place, whole[0])


def test_a_full_disk_at_the_beginning_leaves_nothing(train, place):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        full = train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert_refused(full, "could not be written")
    assert {path.name for path in place.folder.iterdir()} == {"text.txt", "config.json"}


def test_a_file_in_the_way_of_checkpoints_and_a_damaged_checkpoint_are_refused(train, place, monkeypatch):
    with monkeypatch.context() as interrupted:
        interrupt_after(interrupted, 3)
        train()
    checkpoint = place.out / "checkpoints/00000003"
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(train("--resume"), "00000003 is damaged or belongs to another run; remove it")
    (place.out / "checkpoints").rename(place.folder / "elsewhere")
    (place.out / "checkpoints").write_text("")
    assert_refused(train("--resume"), "checkpoints", "could not be written")


def test_a_loss_that_is_not_finite_ends_the_run(train, place):
    assert_refused(train(learning_rate=1e19, warmup_steps=0), "the loss is nan at step", "lower the learning rate")
    assert not (place.out / "model").exists()


def test_a_run_in_the_way_and_a_run_that_is_another_are_refused(train, place, whole):
    place.out.mkdir()
    assert_refused(train(), "exists already; add --resume to continue the run in it")
    assert_refused(train("--resume"), "there is no run in", "leave out --resume")
    place.folder = whole[0].folder
    text = place.folder / "other.txt"
    text.write_text("Something else.")
    before = (place.out / "settings.json").read_bytes()
    assert_refused(train("--resume", text=text), "the text is different")
    assert_refused(train("--resume", steps=40), "steps: was 30, is 40")
    assert_refused(train("--resume", sink="zero", seed=3), "sink: was 'none', is 'zero'; seed: was 0, is 3")
    place.config(rope_theta=500.0, hidden_size=12)
    assert_refused(train("--resume"), "config.hidden_size: was 24, is 12; config.rope_theta: was None, is 500.0")
    place.config()
    assert (place.out / "settings.json").read_bytes() == before


TEXTS = {
    "empty": (b"", "there is no text in"),
    "blank": (b" \n\f\n\f ", "there is no text in"),
    "tiny": (b"The cat sat. " * 30, "the text is too small for a vocabulary of 290: it has"),
    "not UTF-8": (b"caf\xe9 " * 100, "is not UTF-8 text"),
}


@pytest.mark.parametrize(("content", "message"), TEXTS.values(), ids=TEXTS)
def test_texts_that_cannot_be_learned_are_refused(train, place, content, message):
    (place.folder / "text.txt").write_bytes(content)
    assert_refused(train(), message)
    assert {path.name for path in place.folder.iterdir()} == {"text.txt", "config.json"}


def test_texts_that_cannot_be_read_are_refused(train, place):
    broken = place.folder / "text.txt.xz"
    broken.write_bytes(lzma.compress(b"the cat " * 500)[:-20])
    for text, message in (
        (broken, "cannot be read"),
        ("none.txt", "No such file"),
        (place.folder, "is a folder, not a file"),
    ):
        assert_refused(train(text=text), message)
    broken.write_bytes(b"the cat")
    assert_refused(train(text=broken), "text.txt.xz cannot be read")
    assert not place.out.exists()


def test_too_little_for_a_sample_is_refused(train, place):
    documents = (place.folder / "text.txt").read_text().split("\f")
    (place.folder / "text.txt").write_text("\f".join([*documents[:3], "the cat", *documents[3:]]))  # to be held back
    assert_refused(train(hold_back=1), "the text is too small: a sample takes 17 tokens")
    assert_refused(train(hold_back=6), "cannot hold back 6 of 6 documents")
    assert {path.name for path in place.folder.iterdir()} == {"text.txt", "config.json"}


@pytest.mark.parametrize("position", [0, 1])
def test_a_text_that_fills_no_sample_is_refused_before_a_tokenizer_is_trained(train, place, monkeypatch, position):
    """Nothing to learn from, or nothing held back: seen from the bytes."""
    parts = [["x" * 9, "the cat sat " * 500], ["the cat sat " * 500, "x" * 9]][position]
    (place.folder / "text.txt").write_text("\f".join(parts))
    monkeypatch.setattr(preparation, "train_tokenizer", None)
    assert_refused(train(hold_back=1), "a sample takes 17 tokens, and it has 11 at most")
    assert not place.out.exists()


CONFIGS = {
    "another family": ({"model_type": "bert"}, "model_type 'bert' is not supported"),
    "no context": ({"max_position_embeddings": None}, "positive integer for each of max_position_embeddings"),
    "half a token": ({"max_position_embeddings": 16.5}, "positive integer for each of max_position_embeddings"),
    "context in words": ({"max_position_embeddings": "16"}, "positive integer for each of max_position_embeddings"),
    "context of 0": ({"max_position_embeddings": 0}, "positive integer for each of max_position_embeddings"),
    "no sizes": ({"hidden_size": None}, "positive integer for each of hidden_size"),
    "another sink": ({"attention_sink": "zero"}, "the config has attention_sink 'zero', --sink is 'none'"),
    "fewer words than bytes": ({"vocab_size": 100}, "vocab_size must be 258 or more"),
}


@pytest.mark.parametrize(("changes", "message"), CONFIGS.values(), ids=CONFIGS)
def test_configs_that_cannot_be_trained_are_refused(train, place, changes, message):
    place.config(**changes)
    assert_refused(train(), message)
    assert {path.name for path in place.folder.iterdir()} == {"text.txt", "config.json"}


def test_configs_that_cannot_be_read_are_refused(train, place):
    (place.folder / "config.json").write_text("{")
    assert_refused(train(), "config.json is not JSON")
    (place.folder / "config.json").unlink()
    assert_refused(train(), "config.json")


SETTINGS = [
    *((name, value) for name in ("learning-rate", "clip-norm") for value in ("nan", "inf", "0", "-1")),
    *((name, value) for name in ("weight-decay", "final-learning-rate") for value in ("nan", "inf", "-0.1")),
    *((name, value) for name in ("steps", "batch-size", "accumulate", "hold-back", "save-every") for value in (0, -1)),
    *(("accumulate", 3), ("warmup-steps", STEPS), ("warmup-steps", -1), ("seed", -1), ("seed", 2**31)),
    *(("dtype", "int8"), ("dtype", "float16"), ("sink", "maybe")),
]


def test_settings_that_cannot_be_are_refused(train, place):
    for name, value in SETTINGS:
        options = {name.replace("-", "_"): value}
        named = {"accumulate 3": "batch-size", f"steps {STEPS}": "steps"}.get(f"{name} {value}", name)
        assert_refused(train(**options), named, "must be")
    assert not place.out.exists()


def test_a_folder_that_cannot_be_written_is_refused(train, place):
    for out in (place.folder / "text.txt" / "out", "/proc/out"):
        assert_refused(train(out=out), "could not be written")


def test_a_missing_extra_is_named(train, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "optax" else name)
    assert_refused(train(), "training needs optax; run pip install -e '.[train]' in ")
