"""Parser of compiled programs: the kernels of one loop iteration, by part, from XLA's text."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NO_KERNEL = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
}
PARTS = ("embedding", "qkv", "rope", "cache_write", "attention", "mlp", "head")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?[\w.\-]+ = .*?[\])}] ([a-z][a-z\-]*)\((.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    """One line: what it does, and the line from there on."""

    opcode: str
    rest: str

    def attribute(self, name: str) -> str:
        """A name, as in `body=%name`, or a text, as in `op_name="text"`; empty if there is none."""
        found = re.search(rf'{name}=(?:%?([\w.\-]+)|"([^"]*)")', self.rest)
        return (found[1] or found[2] or "") if found else ""


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation of a program."""
    return {
        name: [Instruction(*line) for line in INSTRUCTION.findall(body)] for name, body in COMPUTATION.findall(text)
    }


def kernels(program: dict[str, list[Instruction]], name: str) -> Iterator[Instruction]:
    """The instructions that are launched when a computation runs; what it calls included, inner loops once."""
    for instruction in program.get(name, ()):
        if instruction.opcode in ("call", "while"):
            yield from kernels(program, instruction.attribute("to_apply") or instruction.attribute("body"))
        elif instruction.opcode not in NO_KERNEL and not instruction.opcode.endswith("-done"):
            yield instruction


def loop(program: dict[str, list[Instruction]]) -> str:
    """The body of the loop that has most in it."""
    bodies = {line.attribute("body") for lines in program.values() for line in lines if line.opcode == "while"}
    return max(bodies, key=lambda body: len(list(kernels(program, body))))


def kernel_figures(text: str) -> dict[str, Any]:
    """Kernels of one turn of the loop: of all, by part and by kind; and the graphs, each of which is one launch."""
    program = computations(text)
    body = loop(program)
    launched = list(kernels(program, body))
    return {
        "kernels": len(launched),
        "command_buffers": sum("command_buffer" in line.attribute("to_apply") for line in program[body]),
        "by_part": Counter(part_of(program, line) for line in launched),
        "by_kind": Counter(kind_of(line) for line in launched),
    }


def part_of(program: dict[str, list[Instruction]], line: Instruction) -> str:
    """The innermost of `PARTS` in the name of an instruction, or of what is fused in it, the result first."""
    fused = reversed(program.get(line.attribute("calls"), []))
    words = [word for each in (line, *fused) for word in reversed(each.attribute("op_name").split("/"))]
    return next((word for word in words if word in PARTS), "other")


def kind_of(line: Instruction) -> str:
    """The opcode, with the library that a custom call goes to or the kind of a fusion."""
    detail = line.attribute("custom_call_target") or line.attribute("kind")
    return f"{line.opcode} {detail}".strip()
