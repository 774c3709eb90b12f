"""Chat templates are rendered as in transformers, within limits, in a process that leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.text import template
from sllm_jax.text.template import render, stop
from sllm_jax.text.tokenizer import load_tokenizer

DATA = Path(__file__).parent / "data"
MESSAGES = [
    {"role": "system", "content": "Be terse."},
    {"role": "user", "content": " <b>日本\n\u2028' \"{{ x }} "},
    {"role": "assistant", "content": "yes 🙂"},
    {"role": "user", "content": "And?"},
]
LOOP = "{% for m in messages %}"
TEMPLATES = {
    "plain": LOOP + "{{ m.role }}: {{ m['content'] }}\n{% endfor %}",
    "names of tokens": "{{ bos_token }}" + LOOP + "{{ m.content + eos_token }}{% endfor %}",
    "whitespace": LOOP + "\n  {%- if loop.first -%} A {%- else %} B {% endif +%}\n{% endfor %}",
    "generation": LOOP + "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "prompt": "{% if add_generation_prompt %}go on{% else %}end{% endif %}",
    "tojson": "{{ messages | tojson(indent=2) }}{{ messages[1] | tojson }}",
    "loop control": LOOP + "{% if loop.index == 3 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}" + LOOP + "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "tools": "{% if tools %}tools{% else %}none{% endif %}{{ tools is defined }}{{ documents is none }}",
    "macro": "{% macro f(x) %}[{{ x | trim | upper }}]{% endmacro %}" + LOOP + "{{ f(m.content) }}{% endfor %}",
    "date": "{{ strftime_now('%Y') }}",
    "split": "{{ messages[2].content.split(' ')[-1].strip() }}{{ messages[::-1][0].role }}",
}


@pytest.fixture(params=["bytes", "spm"])
def tokenizer(request):
    return load_tokenizer(DATA / f"tiny-tokenizer-{request.param}")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_as_transformers_renders(tokenizer, name, prompt):
    tokenizer.chat_template = TEMPLATES[name]
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
    assert render(tokenizer, MESSAGES, prompt) == expected


def test_the_default_of_several_templates(tokenizer):
    tokenizer.chat_template = {"default": TEMPLATES["plain"], "tool_use": TEMPLATES["tools"]}
    assert render(tokenizer, MESSAGES, True) == tokenizer.apply_chat_template(MESSAGES, tokenize=False)


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        ("{{ 'a' * 3000000000 }}", "takes too much memory"),
        ("{{ '%3000000000d' % 1 }}", "takes too much memory"),
        ("{{ [0] * 3000000000 }}", "takes too much memory"),
        (
            "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "takes too much memory",
        ),
        ("{{ 'a' * 5000000 }}", "its output has 5000000 characters"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for %}", "Expected"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{{ range(10**12) | list }}", "Range too big"),
    ],
)
def test_a_template_that_takes_too_much_is_refused(tokenizer, hostile, message):
    tokenizer.chat_template = hostile
    with pytest.raises(SllmError, match=message) as error:
        render(tokenizer, MESSAGES, True)
    assert "\n" not in str(error.value)
    tokenizer.chat_template = TEMPLATES["prompt"]
    assert render(tokenizer, MESSAGES, True) == "go on", "the next one is rendered"


@pytest.mark.parametrize(
    "endless",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
        "{{ (('9' * 3000000) | int) }}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_long_is_given_up(tokenizer, monkeypatch, endless):
    tokenizer.chat_template = TEMPLATES["prompt"]
    render(tokenizer, MESSAGES, True)
    monkeypatch.setattr(template, "SECONDS", 0.5)
    tokenizer.chat_template = endless
    with pytest.raises(SllmError, match=r"takes more than 0\.5 s|refuses a conversation"):
        render(tokenizer, MESSAGES, True)
    assert not template._running or template._running[0].poll() is None


def test_an_interrupted_conversation_is_not_the_answer_to_the_next(tokenizer, monkeypatch):
    tokenizer.chat_template = TEMPLATES["plain"]
    render(tokenizer, MESSAGES, True)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(template, "_answer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            render(tokenizer, MESSAGES, True)
    tokenizer.chat_template = TEMPLATES["prompt"]
    assert render(tokenizer, MESSAGES, True) == "go on"


def test_a_process_that_was_killed_is_started_again(tokenizer):
    tokenizer.chat_template = TEMPLATES["prompt"]
    render(tokenizer, MESSAGES, True)
    template._running[0].kill()
    template._running[0].wait()
    with pytest.raises(SllmError, match="exceeds the memory limit"):
        render(tokenizer, MESSAGES, True)
    assert render(tokenizer, MESSAGES, True) == "go on"
    stop()
    assert template._running == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left_behind(number):
    program = f"""
import time
from sllm_jax.text import template
from sllm_jax.text.tokenizer import load_tokenizer
from pathlib import Path
tokenizer = load_tokenizer(Path({str(DATA / "tiny-tokenizer-spm")!r}))
tokenizer.chat_template = "go"
template.render(tokenizer, [{{"role": "user", "content": "a"}}], True)
print(template._running[0].pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        os.kill(parent.pid, number)
        parent.wait()
    until = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        if " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{child}").exists()
