"""AMD machine code (amdgcn assembly as LLVM writes it) as a list of `Instruction`."""

import re

from vae_fast.benchmarks.controlflow import EXIT, Instruction

# The first that matches decides (AMD Instinct MI300 instruction set architecture, chapters 5 to 11).
PIPES = [
    ("control", re.compile(r"s_(waitcnt|nop|branch|cbranch|barrier|endpgm|sleep|setprio|code_end|sethalt|trap)")),
    ("uniform", re.compile(r"s_")),  # once for the whole wave
    ("memory", re.compile(r"(global|buffer|flat|scratch|ds)_")),
    ("matrix", re.compile(r"v_s?mfmac?_")),  # at rates of their own
    ("special", re.compile(r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_")),  # a quarter of the rate
    ("multiply", re.compile(r"v_(mul|mad|dot).*_[iu](24|32|64|8)|v_mul_(lo|hi)_")),
    ("integer", re.compile(r"v_(cmp|max|min|med3|cndmask|pk_max|pk_min)")),
    ("float", re.compile(r"v_cvt|v_.*_(f16|bf16|f32|f64)(_|$)")),
    ("integer", re.compile(r"v_")),
]
ACCESS = re.compile(r"(?:global|buffer|flat)_(load|store|atomic)")
WIDTHS = {
    **dict.fromkeys(("dwordx4", "b128"), 128),
    **dict.fromkeys(("dwordx3", "b96"), 96),
    **dict.fromkeys(("dwordx2", "b64", "x2"), 64),
    **dict.fromkeys(("short", "ushort", "sshort", "b16", "u16"), 16),
    **dict.fromkeys(("byte", "ubyte", "sbyte", "b8", "u8"), 8),
}

LABEL = re.compile(r"^(\.L\w+):")
CODE = re.compile(r"^\s+([a-z]\w*)\s*([^;]*)")
REGISTERS = re.compile(r"s\[(\d+):(\d+)\]$|s(\d+)$")
CONDITION = re.compile(r"vcc, exec, (s\[\d+:\d+\])$")


def parse(assembly):
    """The instructions of the kernel, which alone is global: functions that it calls may stand before it."""
    lines, label_at = [], {}
    for line in assembly[max(assembly.find(".globl"), 0) :].splitlines():
        label, code = LABEL.match(line), CODE.match(line)
        if label:
            label_at[label.group(1)] = len(lines)
        elif code:
            lines.append((code.group(1), code.group(2).strip()))
        elif line.strip().startswith(".section") and lines:
            break
    asked = [_flag_asked(lines, number) for number in range(len(lines))]
    flags = {question[0] for question in asked if question}
    return [_instruction(*line, label_at, asked[number], flags) for number, line in enumerate(lines)]


def _instruction(opcode, operands, label_at, asks, flags):
    access = ACCESS.match(opcode)
    return Instruction(
        text=f"{opcode} {operands}".strip(),
        opcode=opcode,
        pipe=next((pipe for pipe, pattern in PIPES if pattern.match(opcode)), "other"),
        access=access.group(1) if access else "",
        bits=_width(opcode) if access else 0,
        asks=asks,
        sets=_flag_set(opcode, operands, flags),
        call=opcode == "s_swappc_b64",
        **_branch(opcode, operands, label_at),
    )


def _branch(opcode, operands, label_at):
    """Where an instruction goes on, as the fields of `Instruction`.

    The main path has active lanes: a branch taken by a wave without any (execz) is left out, and one that a wave with
    lanes takes (execnz) is likely. The compiler writes both between the two sides of a uniform choice.
    """
    if opcode in ("s_endpgm", "s_setpc_b64"):
        return {"targets": (EXIT,), "falls_through": False}
    if not opcode.startswith(("s_branch", "s_cbranch")) or opcode == "s_cbranch_execz":
        return {}
    if opcode == "s_branch":
        return {"targets": (label_at[operands],), "falls_through": False}
    return {"targets": (label_at[operands],), "likely": opcode == "s_cbranch_execnz"}


def _flag_set(opcode, operands, flags):
    """The compiler notes in a pair of scalar registers, all ones or all zeros, from which side of a choice it came."""
    target, _, value = operands.partition(", ")
    written = _registers(target)
    for flag in flags:
        if written.intersection(_registers(flag)):
            constant = {"-1": True, "0": False}.get(value) if opcode == "s_mov_b64" else None
            return flag, constant
    return None


def _registers(name):
    match = REGISTERS.match(name)
    if not match:
        return frozenset()
    first, last, single = match.groups()
    return frozenset(range(int(first or single), int(last or single) + 1))


def _flag_asked(lines, number):
    """(flag, the value at which a branch on vcc is taken) where vcc was just made from a flag."""
    wanted = {"s_cbranch_vccnz": True, "s_cbranch_vccz": False}.get(lines[number][0])
    if wanted is None:
        return None
    for opcode, operands in reversed(lines[max(0, number - 8) : number]):
        if operands.startswith("vcc") or opcode.startswith("s_cbranch"):
            flag = CONDITION.match(operands)
            made = {"s_and_b64": wanted, "s_andn2_b64": not wanted}.get(opcode)
            return None if flag is None or made is None else (flag.group(1), made)
    return None


def _width(opcode):
    return next((WIDTHS[part] for part in opcode.split("_") if part in WIDTHS), 32)
