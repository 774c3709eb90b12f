"""Ctrl-C, SIGTERM and SIGHUP: deferred where stopping would do harm, each with its exit code."""

import os
import signal
import subprocess
import sys
import time

import pytest
from terminals import code_when_it_closes

from sllm_jax.common import signals
from sllm_jax.common.signals import STOPPING, deferred_signals, handled_by, raise_stopped

CODES = [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143), (signal.SIGHUP, SystemExit, 129)]


@pytest.fixture(autouse=True)
def left(monkeypatch):
    """Signals by which the process would have left at once; the handlers are put back."""
    before, left = {number: signal.getsignal(number) for number in STOPPING}, []
    monkeypatch.setattr(signals, "leave", lambda number, _=None: left.append(number))
    signals.leave_on_signals()
    yield left
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised", "code"), CODES)
def test_a_signal_waits_until_stopping_is_safe(number, raised, code, left):
    with deferred_signals(raise_stopped) as check:
        check()
        signal.raise_signal(number)
        assert left == []
        with pytest.raises(raised) as stopped:
            check()
    assert getattr(stopped.value, "code", None) == code
    assert left == []


def test_a_signal_after_the_last_check_is_not_lost(left):
    with pytest.raises(SystemExit), deferred_signals(raise_stopped):
        signal.raise_signal(signal.SIGTERM)
    assert left == []


@pytest.mark.parametrize("second", STOPPING)
def test_a_second_signal_does_not_wait(second, left):
    with deferred_signals(), deferred_signals():  # a command and its stream
        signal.raise_signal(signal.SIGTERM)
        assert left == []
        signal.raise_signal(second)
        assert left == [signal.SIGTERM, second]


def test_a_stream_gives_a_signal_to_whoever_had_it_before(left):
    with deferred_signals() as deliver:
        signal.raise_signal(signal.SIGTERM)
    assert left == []
    deliver()
    assert left == [signal.SIGTERM]


@pytest.mark.parametrize("context", [deferred_signals, lambda: handled_by(raise_stopped)])
def test_what_is_ignored_stays_ignored(context):
    """As in `nohup`, and in a background job of a script."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signals.leave_on_signals()
    with context():
        for number in STOPPING:
            signal.raise_signal(number)
            signal.raise_signal(number)
    assert {signal.getsignal(number) for number in STOPPING} == {signal.SIG_IGN}


def test_a_program_that_uses_the_library_still_ends_on_sigterm():
    program = """
import os, signal
from sllm_jax.common.signals import deferred_signals
with deferred_signals():
    os.kill(os.getpid(), signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGTERM


def chat(model, **streams):
    command = [sys.executable, "-m", "sllm_jax", "chat", "--model", model, "--max-tokens", "9", "--recent-size", "50"]
    return subprocess.Popen(command, **streams)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_chat_that_waits_for_a_message_ends(model, number, code):
    with chat(model, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        heard = b""
        while b"a cache of" not in heard:
            heard += os.read(process.stderr.fileno(), 100)
        time.sleep(0.3)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in err
    assert b"tokens seen" in err


def test_a_terminal_that_closes_ends_a_chat(model):
    """The process is told by SIGHUP, and can write nothing any more."""
    assert code_when_it_closes("USER:", "chat", "--model", model) == 129
