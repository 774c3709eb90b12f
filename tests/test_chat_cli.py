"""`chat` in use: the line editor, commands, and piped lines."""

import re
import subprocess
import sys
import threading

import pytest
from prompt_toolkit.application import Application, create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from test_cli import SUMMARY, assert_refused

from sllm_jax.cli.conversation import COMMANDS, Conversation, respond, talk
from sllm_jax.cli.messages import typed
from sllm_jax.common.errors import SllmError
from sllm_jax.streams.stream import Stream

ENTER, LEFT, UP, ESCAPE, CTRL_C, CTRL_D, CTRL_Z = "\r", "\x1b[D", "\x1b[A", "\x1b", "\x03", "\x04", "\x1a"


def pasted(text):
    return f"\x1b[200~{text}\x1b[201~"


@pytest.fixture
def type_keys(monkeypatch):
    """The messages that some keys make."""
    monkeypatch.setattr("prompt_toolkit.output.create_output", lambda **_: DummyOutput())

    def type_keys(keys):
        with create_pipe_input() as pipe, create_app_session(input=pipe):
            sender = threading.Thread(target=pipe.send_text, args=(keys,))  # a pipe holds 64 KiB
            sender.start()
            messages = list(typed())
            sender.join()
        return messages

    return type_keys


TYPED = {
    "a line": (f"Hello{ENTER}", ["Hello"]),
    "arrows": (f"Who is thre?{LEFT}{LEFT}e{ENTER}", ["Who is three?"]),
    "a paste of many lines": (
        f"{pasted('one' + chr(10) + 'two' + chr(13) + chr(10) + 'three')}{ENTER}",
        ["one\ntwo\nthree"],
    ),
    "a paste into a line": (f"see: {pasted('a' + chr(10) + 'b')}!{ENTER}", ["see: a\nb!"]),
    "Alt-Enter": (f"one{ESCAPE}{ENTER}two{ENTER}", ["one\ntwo"]),
    "8,000 characters": (f"{'word ' * 1600}{ENTER}", ["word " * 1600]),
    "a paste of 100,000 characters": (f"{pasted('word ' * 20_000)}{ENTER}", ["word " * 20_000]),
    "other scripts": (f"日本 🙂 é{ENTER}", ["日本 🙂 é"]),
    "Ctrl-C discards": (f"wrong{CTRL_C}right{ENTER}", ["right"]),
}


@pytest.mark.parametrize(("keys", "messages"), TYPED.values(), ids=TYPED)
def test_messages_are_edited_and_whole(type_keys, keys, messages):
    assert type_keys(keys + CTRL_D) == messages


@pytest.mark.parametrize("end", [CTRL_D, CTRL_C], ids=["Ctrl-D", "Ctrl-C"])
def test_ctrl_d_and_ctrl_c_end_the_chat(type_keys, end):
    assert type_keys(f"Hello{ENTER}{end}never read{ENTER}") == ["Hello"]


def test_ctrl_z_suspends_and_is_no_text(type_keys, monkeypatch):
    suspended = []
    monkeypatch.setattr(Application, "suspend_to_background", lambda *_: suspended.append(True))
    assert type_keys(f"Hel{CTRL_Z}lo{ENTER}{CTRL_D}") == ["Hello"]
    assert suspended == [True]


@pytest.fixture
def conversation(loaded):
    """A chat with the tiny model."""
    return Conversation("tiny", lambda: Stream(*loaded, recent_size=20, seed=3), None, 4, (), {"temperature": 1.0})


def test_reset_begins_again_with_the_same_seed(conversation, capsys):
    respond(conversation, "Hello")
    first, seen = capsys.readouterr().out, conversation.stream.tokens_seen
    respond(conversation, "Hello")
    assert conversation.stream.tokens_seen > seen
    assert respond(conversation, "/reset")
    assert (conversation.stream.tokens_seen, conversation.stream.cache_in_use) == (0, 0)
    respond(conversation, "Hello")
    assert conversation.stream.tokens_seen == seen
    assert capsys.readouterr().out.endswith(first)


def test_system_begins_again_with_the_text_and_shows_it(conversation, capsys):
    respond(conversation, "/system")
    assert "there is no system text" in capsys.readouterr().err
    respond(conversation, "Hello")
    plain = conversation.stream.tokens_seen
    respond(conversation, "/system  You are terse. ")
    assert (conversation.system, conversation.stream.tokens_seen) == ("You are terse.", 0)
    respond(conversation, "Hello")
    assert conversation.stream.tokens_seen > plain
    respond(conversation, "/system")
    assert capsys.readouterr().err.endswith("You are terse.\n")


@pytest.mark.parametrize("line", ["/system\nBe terse.\nBe kind.", "/system\tBe terse.\nBe kind."])
def test_any_white_space_ends_the_name_of_a_command(conversation, line):
    """A paste of many lines is one message, and so one command."""
    assert respond(conversation, line)
    assert conversation.system == "Be terse.\nBe kind."


def test_stats_tell_tokens_cache_model_and_device(conversation, capsys):
    respond(conversation, "Hello")
    capsys.readouterr()
    respond(conversation, "/stats")
    err = capsys.readouterr().err
    assert SUMMARY.search(err)[4] == "24"
    assert "tiny, float32, on cpu, a cache of 24 tokens" in err


def test_help_lists_all_commands(conversation, capsys):
    assert respond(conversation, "/help")
    err = capsys.readouterr().err
    assert all(f"{name} " in err and what in err for name, what in COMMANDS.items())


@pytest.mark.parametrize("line", ["/nonsense", "/", "/Help", "/usr/bin/env is a program"])
def test_an_unknown_command_lists_those_there_are_and_is_not_sent(conversation, capsys, line):
    assert respond(conversation, line)
    out, err = capsys.readouterr()
    assert f"there is no command {line.split()[0]}; expected {', '.join(COMMANDS)}" in err
    assert (out, conversation.stream.tokens_seen) == ("", 0)


def test_two_slashes_send_one(conversation, monkeypatch):
    sent = []
    monkeypatch.setattr(conversation, "answer", sent.append)
    for message in ("//usr/bin", "///", "a /reset"):
        assert respond(conversation, message)
    assert sent == ["/usr/bin", "//", "a /reset"]


def test_exit_ends_the_chat(conversation):
    messages = iter(["", "  ", "/exit", "never asked"])
    talk(conversation, messages)
    assert list(messages) == ["never asked"]


def test_a_refused_message_does_not_end_a_typed_chat(conversation, capsys, monkeypatch):
    def refuse(message):
        raise SllmError("too long")

    monkeypatch.setattr(conversation, "answer", refuse)
    talk(conversation, iter(["Hello", "Again"]))
    assert capsys.readouterr().err == "error: too long\n" * 2


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on(conversation, monkeypatch):
    asked = []

    def interrupted(message):
        asked.append(message)
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation, "answer", interrupted)
    talk(conversation, iter(["one", "two"]))
    assert asked == ["one", "two"]


def test_piped_lines_are_messages_even_with_a_slash(run, model):
    code, out, err = run("chat", "--model", model, "--max-tokens", 2, stdin="/reset\n\nHello\n")
    assert (code, out.count("\n") >= 2) == (0, True)
    assert re.findall(r"^USER: (.*)$", err, re.M) == ["/reset", "Hello"]
    assert f"{model}, float32, on cpu, a cache of 127 tokens\n" in err


@pytest.mark.parametrize("wrong", [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80"], ids=["UTF-16", "Latin-1", "a surrogate"])
def test_a_line_that_is_not_utf_8_is_skipped(run, model, wrong):
    code, _, err = run("chat", "--model", model, "--max-tokens", 2, stdin=b"Hello\n" + wrong + b"\nAnd you?\n")
    assert code == 0
    assert "skipped line 2: standard input is not UTF-8 text" in err
    assert re.findall(r"^USER: (.*)$", err, re.M) == ["Hello", "And you?"]


@pytest.mark.parametrize("given", [b"", b"\n  \n", b"\xff\n"], ids=["nothing", "blank lines", "not UTF-8"])
def test_no_message_at_all_is_refused(run, model, given):
    code, out, err = run("chat", "--model", model, stdin=given)
    assert (code, out) == (2, "")
    assert err.endswith("error: standard input has no message; give one on each line\n")


def test_a_prompt_that_is_not_utf_8_is_refused(run, model):
    assert_refused(run("generate", "--model", model, "-", stdin=b"caf\xe9"), "standard input is not UTF-8 text")


CLOSED = {
    "chat <&-": "standard input is closed",
    "generate - <&-": "standard input is closed",
    "perplexity --text - <&-": "standard input is closed",
    "chat >&-": "standard output is closed",
    "generate >&-": "standard output is closed",
    "models >&-": "standard output is closed",
}


@pytest.mark.parametrize(("command", "message"), CLOSED.items(), ids=CLOSED)
def test_closed_ends_are_one_sentence(command, message):
    done = subprocess.run(
        ["bash", "-c", f"echo Hello | {sys.executable} -m sllm_jax {command}"], capture_output=True, text=True
    )
    assert_refused((done.returncode, done.stdout, done.stderr), message)


def test_notes_do_not_go_to_standard_output_when_standard_error_is_closed(model):
    command = f"{sys.executable} -m sllm_jax generate Hello -m {model} --max-tokens 3 --ignore-eos --greedy"
    plain, closed = (subprocess.check_output(["bash", "-c", command + end]) for end in (" 2>/dev/null", " 2>&-"))
    assert closed == plain


def test_a_reader_of_a_chat_that_leaves_ends_it_quietly(model):
    command = (
        f"yes Hello | {sys.executable} -m sllm_jax chat -m {model} --max-tokens 2 | head -1; echo ${{PIPESTATUS[1]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "1"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_at_a_terminal_a_chat_is_edited_from_the_first_message_to_the_last(terminal, model):
    screen = terminal("chat", "--model", model, "--max-tokens", 3, "--seed", 1)
    screen.expect("/help lists the commands")
    screen.expect("USER:")
    screen.type(f"Hello{ENTER}")
    screen.expect("ASSISTANT:")
    screen.expect("USER:")
    screen.type(UP)
    screen.expect("Hello")
    screen.type(ENTER)
    screen.expect("ASSISTANT:")
    screen.expect("USER:")
    screen.type(f"{pasted(chr(10).join(['a line'] * 400))}{ENTER}")
    screen.expect("ASSISTANT:")
    screen.expect("USER:")
    screen.type(f"/stats{ENTER}")
    screen.expect("tokens seen")
    screen.expect("USER:")
    screen.type(CTRL_D)
    screen.expect("tokens seen")
    assert screen.process.wait(timeout=60) == 0


def test_on_a_dumb_terminal_a_chat_moves_no_cursor(terminal, model):
    """As in Emacs' shell, which shows escape sequences as they are."""
    screen = terminal("chat", "--model", model, "--max-tokens", 3, kind="dumb")
    screen.expect("USER: ")
    screen.type(f"/stats{ENTER}")
    screen.expect("tokens seen")
    screen.expect("USER: ")
    screen.type(f"/exit{ENTER}")
    screen.expect("tokens seen")
    assert screen.process.wait(timeout=60) == 0
    assert "\x1b" not in screen.passed.partition("USER: ")[2]
