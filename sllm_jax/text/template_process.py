"""The process that renders chat templates for `template.py`: a request a line on standard input, an answer a line.

It is run as a file and imports nothing of `sllm_jax`, so that it starts in a second. It ends with its standard input.
"""

import contextlib
import json
import signal
import sys

MEMORY = 2**30  # bytes that rendering may take
SECONDS = 15  # after which the system ends this process, if nobody else has done so
MAX_CHARACTERS = 2**22  # of a rendered conversation


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        signal.alarm(SECONDS)
        try:
            text = render_jinja_template(**json.loads(line))[0][0]  # of several conversations, without their masks
            answer = {"text": text} if len(text) <= MAX_CHARACTERS else {"error": f"it writes {len(text)} characters"}
        except MemoryError:
            answer = {"error": "it takes too much memory"}
        except BaseException as error:  # a template may raise anything
            answer = {"error": str(error).strip().partition("\n")[0][:500] or type(error).__name__}
        signal.alarm(0)
        print(json.dumps(answer), flush=True)


def _limit_memory() -> None:
    """From here on an allocation of more than `MEMORY` fails, where the system can do that."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


if __name__ == "__main__":
    main()
