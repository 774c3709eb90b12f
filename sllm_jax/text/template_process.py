"""The subprocess that renders chat templates for `template.py`: one JSON line per request on stdin, one per answer.

It is run as a script and imports nothing from `sllm_jax`, so that it starts quickly. It ends when stdin closes.
"""

import contextlib
import json
import signal
import sys

MEMORY = 2**30  # bytes available for rendering
SECONDS = 15  # after which SIGALRM ends this process, if the parent has not
MAX_CHARACTERS = 2**22  # limit on a rendered conversation


def main() -> None:
    """Answer requests until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        signal.alarm(SECONDS)
        try:
            text = render_jinja_template(**json.loads(line))[0][0]  # first conversation, without its mask
            answer = (
                {"text": text} if len(text) <= MAX_CHARACTERS else {"error": f"its output has {len(text)} characters"}
            )
        except MemoryError:
            answer = {"error": "it takes too much memory"}
        except BaseException as error:  # a template may raise anything
            answer = {"error": str(error).strip().partition("\n")[0][:500] or type(error).__name__}
        signal.alarm(0)
        print(json.dumps(answer), flush=True)


def _limit_memory() -> None:
    """Limit the memory allocated from here on to `MEMORY`, where the system supports it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


if __name__ == "__main__":
    main()
