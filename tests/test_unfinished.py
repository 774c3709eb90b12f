"""Files appear complete or not at all, are synced to disk, and leave nothing behind when a process is killed."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import made_folder, new_file, new_folder, scratch_folder
from sllm_jax.common.unfinished import remove_abandoned, unfinished

WORKS = {  # what leaves `out` in the working directory, or nothing
    "file": "with files.new_file(Path('out')) as file: file.write(b'whole')",
    "folder": "with files.new_folder(Path('out')) as folder: (folder / 'a').mkdir(); (folder / 'a/b').touch()",
    "scratch": "with files.scratch_folder() as folder: (folder / 'b').write_text('whole')",
}
KILLED = """
import os, signal, sys, tempfile, threading
from pathlib import Path
from sllm_jax.common import files
left = int(sys.argv[1])
tempfile.gettempdir()  # which tries whether it can write there
def count(event, arguments):
    global left
    if event in ('open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'fcntl.flock', 'os.listdir', 'os.scandir'):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), int(sys.argv[2]))
signal.signal(signal.SIGTERM, __import__('sllm_jax.common.signals', fromlist=['leave']).leave)
sys.addaudithook(count)
"""


def everything_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def start(place, work, *arguments):
    environment = os.environ | {"TMPDIR": str(place)}
    command = [sys.executable, "-c", KILLED + WORKS[work], *map(str, arguments)]
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("work", "number"), [*((work, signal.SIGKILL) for work in WORKS), ("folder", signal.SIGTERM)])
def test_a_kill_before_any_step_leaves_all_or_nothing_and_the_next_start_tidies_up(work, number, tmp_path):
    """Every event that Python reports of the work is a moment to be killed at."""
    whole = {"file": ["out"], "folder": ["out", "out/a", "out/a/b"], "scratch": []}[work]
    for moment in range(1, 100):
        place = tmp_path / str(moment)
        place.mkdir()
        with start(place, work, moment, int(number)) as process:
            _, err = process.communicate()
        visible = [name for name in everything_below(place) if not name.startswith((".", "sllm-jax-"))]
        assert visible in ([], whole), moment
        if process.returncode == 0:
            assert moment > 5
            break
        assert process.returncode in (-signal.SIGKILL, 143), err.decode()
        if number == signal.SIGTERM and visible == []:
            assert [name for name in everything_below(place) if not name.startswith("sllm-jax-0")] == []
        with start(place, work, 0, 0) as process:
            _, err = process.communicate()
        assert process.returncode == 0 or b"exists already" in err
        assert [name for name in everything_below(place) if "." in name] == []
    assert process.returncode == 0, "never done"


def test_the_unfinished_work_of_a_living_process_stays(tmp_path):
    program = KILLED + WORKS["folder"].replace("(folder / 'a').mkdir();", "print(flush=True); sys.stdin.read();")
    command = [sys.executable, "-c", program.replace("(folder / 'a/b')", "(folder / 'b')"), "0", "0"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        process.stdout.readline()
        before = everything_below(tmp_path)
        assert [name.rpartition(".")[2] for name in before] == ["lock", "tmp"]
        remove_abandoned(tmp_path)
        remove_abandoned(tmp_path, "out")
        assert everything_below(tmp_path) == before
        process.communicate()
    assert process.returncode == 0
    assert everything_below(tmp_path) == ["out", "out/b"]


def test_only_what_looks_like_our_own_is_removed(tmp_path):
    ours = [".out.0123abcd.tmp", ".out.0123abcd.lock", ".out.89abcdef.tmp"]
    others = [".out.tmp", ".out.0123abcg.tmp", "out.0123abcd.tmp", ".other.0123abcd.tmp", ".o[u]t.0123abcd.tmp"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    remove_abandoned(tmp_path, "out")
    assert everything_below(tmp_path) == sorted(others)
    remove_abandoned(tmp_path, "o[u]t")
    assert not (tmp_path / others[-1]).exists()


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / ".out.0123abcd.tmp").symlink_to("precious")
    remove_abandoned(tmp_path)
    assert everything_below(tmp_path) == ["precious", "precious/file"]


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")])
def test_without_locks_nothing_is_removed_and_all_is_written(tmp_path, monkeypatch, error):
    def no_locks(*_, **__):
        raise error

    monkeypatch.setattr("sllm_jax.common.unfinished.FileLock.acquire", no_locks)
    with new_file(tmp_path / "out") as file:
        file.write(b"whole")
        remove_abandoned(tmp_path)
        assert len(everything_below(tmp_path)) == 2
    assert everything_below(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_a_mark_that_is_taken_for_abandoned_is_made_again(tmp_path, monkeypatch):
    """Another process may see it before it is locked."""
    from filelock import FileLock

    acquire, thefts = FileLock.acquire, iter([True, True])

    def acquire_late(lock, *arguments, **options):
        found = acquire(lock, *arguments, **options)
        if next(thefts, False):
            Path(lock.lock_file).unlink()
        return found

    monkeypatch.setattr("sllm_jax.common.unfinished.FileLock.acquire", acquire_late)
    with unfinished(tmp_path / "out"):
        assert len(list(tmp_path.glob(".out.*.lock"))) == 1
    assert not list(tmp_path.iterdir())


def test_what_threads_write_while_their_process_leaves_is_removed_at_the_next_start(tmp_path):
    """TensorStore's threads make their folder again where it is missing."""
    writing = """
with files.new_folder(Path('out')) as folder:
    threads = [threading.Thread(target=lambda: [os.makedirs(folder / 'x', exist_ok=True) for _ in iter(int, 1)])]
    threads[0].start()
    print(flush=True)
    threads[0].join()
"""
    command = [sys.executable, "-c", KILLED + writing, "0", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    remove_abandoned(tmp_path, "out")
    assert everything_below(tmp_path) == []


def calls_of(monkeypatch, *names):
    """Records each call of these functions of `os`: its name, and what it was about, by name."""
    calls = []

    def record(name):
        function = getattr(os, name)

        def recorded(about, *more, **options):
            path = os.readlink(f"/proc/self/fd/{about}") if isinstance(about, int) else os.fspath(about)
            calls.append((name, "TEMPORARY" if path.endswith(".tmp") else Path(path).name))
            return function(about, *more, **options)

        monkeypatch.setattr(os, name, recorded)

    for name in names:
        record(name)
    return calls


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks up open files in /proc")


@linux
def test_a_file_is_on_the_disk_before_and_its_name_after_it_is_renamed(tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    calls = calls_of(monkeypatch, "fsync", "replace")
    with new_file(place / "out") as file:
        file.write(b"whole")
    assert calls == [("fsync", "TEMPORARY"), ("replace", "TEMPORARY"), ("fsync", "place")]


@linux
def test_everything_in_a_folder_is_on_the_disk_before_and_its_name_after_it_is_renamed(tmp_path, monkeypatch):
    calls = calls_of(monkeypatch, "fsync", "rename")
    with new_folder(tmp_path / "new/place/out") as folder:
        (folder / "a").mkdir()
        for name in ("a/b", "c"):
            (folder / name).touch()
    parents = [("fsync", "new"), ("fsync", tmp_path.name)]
    content = [("fsync", "b"), ("fsync", "a"), ("fsync", "c"), ("fsync", "TEMPORARY")]
    assert calls == [*parents, *content, ("rename", "TEMPORARY"), ("fsync", "place")]


@linux
def test_a_folder_that_is_made_is_on_the_disk(tmp_path, monkeypatch):
    calls = calls_of(monkeypatch, "fsync")
    made_folder(tmp_path / "a/b")
    made_folder(tmp_path / "a/b")
    assert calls == [("fsync", "a"), ("fsync", tmp_path.name)]


def test_what_cannot_be_put_on_the_disk_does_not_appear(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    (tmp_path / "out").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SllmError, match="out could not be written: No space left"), new_file(tmp_path / "out") as file:
        file.write(b"after")
    with pytest.raises(SllmError, match="No space left"), new_folder(tmp_path / "folder") as folder:
        (folder / "a").touch()
    assert everything_below(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "before"


def test_a_scratch_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"sllm-jax-{os.getuid()}").symlink_to("theirs")
    with pytest.raises(SllmError, match="belongs to another user; set TMPDIR"), scratch_folder():
        pytest.fail("not reached")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
def test_where_nothing_can_be_made_is_an_error_at_once():
    with pytest.raises(OSError), unfinished(Path("/proc/out")):  # noqa: PT011, the system's own words
        pass
