"""Commands on a pseudo-terminal."""

import os
import pty
import select
import subprocess
import sys
import termios
import time

_CLOSED = """
import os, pty, sys
awaited, *arguments = sys.argv[1:]
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.executable, [sys.executable, "-m", "sllm_jax", *arguments])
heard = ""
while awaited not in heard:
    heard += os.read(terminal, 10_000).decode(errors="replace")
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def code_when_it_closes(awaited, *arguments):
    """The exit code of a command on a terminal that closes once the command has shown a text."""
    environment = os.environ | {"COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
    command = [sys.executable, "-c", _CLOSED, awaited, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    return int(done.stdout)


class Terminal:
    """A command on a pseudo-terminal of some rows and columns."""

    def __init__(self, *arguments, kind="xterm", size=(30, 100), **environment):
        self.controller, end = pty.openpty()
        termios.tcsetwinsize(end, size)
        environment = os.environ | {"TERM": kind, "PROMPT_TOOLKIT_NO_CPR": "1"} | environment
        for name in ("COLUMNS", "LINES"):  # of another terminal; pytest's parallel processes have them
            environment.pop(name, None)
        command = [sys.executable, "-m", "sllm_jax", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment)
        os.close(end)
        self.shown, self.passed = "", ""

    def expect(self, text):
        """Read until this text has come, and forget what came up to it."""
        end = time.monotonic() + 120
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            assert select.select([self.controller], [], [], 60)[0], self.shown
            self.shown += os.read(self.controller, 10_000).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        self.passed += before + text

    def type(self, keys):
        os.write(self.controller, keys.encode())
