"""PTX as a list of instructions, for `ptx` to run."""

import functools
import re
from typing import NamedTuple

from tests.kernels.ptx_arithmetic import TYPES


class Instruction(NamedTuple):
    text: str
    guard: str  # a predicate or ""
    unless: bool  # where that is false
    op: str
    modifiers: list
    types: list
    operands: list


class Code(NamedTuple):
    parameters: dict  # name -> type
    sizes: dict  # register, or the letters that its name begins with -> bytes, 0 for a predicate
    instructions: list
    labels: dict
    blocks: list  # the places where a jump may lead, and the end


@functools.lru_cache(maxsize=256)
def parse(ptx):
    ptx = re.sub(r"//.*|^\s*\.(loc|file|pragma)\b.*", "", ptx, flags=re.M)
    head, body = re.search(r"\.entry\s+(.*?)\n\{(.*)\n\}", ptx, re.S).groups()
    sizes, instructions, labels = {}, [], {}
    for statement in re.split(r";|(?<=:)\s*\n", body):
        text = " ".join(statement.split()).lstrip("{} ")  # braces around statements only say where a name is known
        if text.endswith(":"):
            labels[text[:-1]] = len(instructions)
        elif declared := re.fullmatch(r"\.reg \.(\w+) (.*)", text):
            for name in declared[2].split(", "):
                sizes[name.partition("<")[0]] = TYPES[declared[1]].itemsize if declared[1] != "pred" else 0
        elif text:
            instructions.append(_instruction(text))
    jumps = [k + 1 for k, each in enumerate(instructions) if each.op in ("bra", "ret")]
    blocks = sorted({0, len(instructions), *jumps, *labels.values()})
    parameters = {name: kind for kind, name in re.findall(r"\.param\s+\.(\w+).*?(\w+_param_\d+)", head)}
    return Code(parameters, sizes, instructions, labels, blocks)


def _instruction(text):
    unless, guard, op, operands = re.fullmatch(r"(?:@(!?)(%\w+) )?([a-z][\w.:]*) ?(.*)", text).groups()
    op, *modifiers = op.split(".")
    operands = [_operand(o) for o in re.findall(r"\{.*?\}|\[.*?\]|[^\s,{}\[\]]+", operands)]
    return Instruction(text, guard or "", bool(unless), op, modifiers, [m for m in modifiers if m in TYPES], operands)


def _operand(text):
    """A register's name, a list of operands, (name, offset) of an address, or the bits of a number."""
    if text[0] == "{":
        return [_operand(part) for part in re.findall(r"[^\s,{}]+", text)]
    if text[0] == "[":
        name, _, offset = text[1:-1].replace(" ", "").partition("+")
        return name, int(offset or "0")
    if re.match(r"0[fd]", text):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0) if re.match(r"-?\d", text) else text
