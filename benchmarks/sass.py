"""NVIDIA machine code (SASS), as `cuobjdump -sass` prints it, as a list of `Instruction`."""

import re
from dataclasses import replace

from vae_fast.benchmarks.controlflow import EXIT, Instruction

# Where an instruction is issued to, for sm_80 to sm_100, by the opcode before its first dot (names: CUDA Binary
# Utilities; pipes: CUDA C++ Programming Guide, "Arithmetic instructions", and the pipes of Nsight Compute).
PIPES = {
    # 64 lanes a clock and SM: integer, logic, comparison, selection, moves, and packing of floats
    "integer": "IADD IADD3 IADD32I VIADD VIADDMNMX LEA IABS IMNMX VIMNMX VIMNMX3 LOP LOP3 LOP32I SHF SHL SHR BMSK SGXT "
    "PRMT SEL CSEL FSEL MOV MOV32I ISETP FSETP HSETP2 PLOP3 FSET FMNMX FMNMX3 HMNMX2 FCHK P2R R2P VOTE VABSDIFF I2FP "
    "F2FP I2I I2IP",
    # half of the FMA lanes; some are moves and shifts that the assembler puts here to balance the two
    "multiply": "IMAD IMUL IMAD32I IMUL32I IDP IDP4A",
    # 128 lanes a clock and SM, 64 on sm_80; double precision, counted here too, has fewer
    "float": "FADD FMUL FFMA FADD2 FMUL2 FFMA2 FADD32I FMUL32I FFMA32I FSWZADD FHADD FHFMA HADD2 HMUL2 HFMA2 HADD2_32I "
    "HMUL2_32I HFMA2_32I DADD DMUL DFMA DSETP DMNMX",
    # matrices, at rates of their own
    "matrix": "HMMA IMMA DMMA BMMA QMMA OMMA HGMMA IGMMA QGMMA BGMMA UTCHMMA UTCIMMA UTCQMMA UTCOMMA",
    # 16 lanes a clock and SM
    "special": "MUFU I2F F2I F2F FRND POPC FLO BREV",
    "memory": "LD LDG LDS LDL LDC LDSM LDGSTS LDGDEPBAR ST STG STS STL STSM ATOM ATOMG ATOMS RED REDG REDAS SHFL MATCH "
    "LDTM STTM CCTL MEMBAR FENCE QSPC",
    "control": "BRA BRX JMP CALL RET EXIT BSSY BSYNC BREAK BMOV BAR DEPBAR WARPSYNC YIELD NANOSLEEP ERRBAR BPT KILL "
    "NOP S2R CS2R SETCTAID PREEXIT ACQBULK SYNCS ELECT CGAERRBAR UCGABAR_ARV UCGABAR_WAIT "
    "WARPGROUP LEPC",
    # once for the whole warp, beside the vector lanes; other names that begin with U are of this kind too
    "uniform": "R2UR S2UR LDCU REDUX CREDUX VOTEU",
}
PIPE_OF = {opcode: pipe for pipe, opcodes in PIPES.items() for opcode in opcodes.split()}

ACCESSES = {
    **dict.fromkeys(("LD", "LDG", "LDGSTS"), "load"),
    **dict.fromkeys(("ST", "STG"), "store"),
    **dict.fromkeys(("ATOM", "ATOMG", "RED", "REDG"), "atomic"),
}
WIDTHS = {"256": 256, "128": 128, "96": 96, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
LOCAL = ("LDL", "STL")
BULK = ("UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED")  # copies of whole tiles, by an engine of their own

LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
ADDRESS = re.compile(r"\b0x([0-9a-f]+)\s*$")


def parse(sass):
    """The instructions of the kernel, without the padding behind its last one."""
    lines = [(int(address, 16), guard, opcode, rest) for address, guard, opcode, rest in LINE.findall(sass)]
    while lines and (lines[-1][2] == "NOP" or _jumps_to_itself(lines[-1])):
        lines.pop()
    number_of = {address: number for number, (address, *_) in enumerate(lines)}
    barriers = {}  # BSYNC B0 goes to the address that the last BSSY B0 named
    instructions, called = [], {}  # called: number of a CALL -> that of the instruction it goes to
    for number, (_, guard, opcode, rest) in enumerate(lines):
        name = opcode.split(".")[0]
        if name == "BSSY":
            barriers[_barrier(rest)] = _target(rest)
        target = barriers.get(_barrier(rest)) if name == "BSYNC" else _target(rest)
        targets, falls_through = _onward(name, opcode, guard, rest, number_of.get(target))
        if name == "CALL" and target in number_of:
            called[number] = number_of[target]
        access = ACCESSES.get(name, "")
        instructions.append(
            Instruction(
                text=f"@{guard} {opcode}{rest}".strip() if guard else f"{opcode}{rest}".strip(),
                opcode=opcode,
                pipe=PIPE_OF.get(name) or ("uniform" if name.startswith("U") else "other"),
                access=access,
                bits=_width(opcode) if access else 0,
                targets=targets,
                falls_through=falls_through,
                call=name == "CALL",
            )
        )
    return _with_last_stores(_with_jumps(instructions, called))


def _with_last_stores(instructions):
    """`@P EXIT`, a store and `EXIT` are how ptxas writes the last store that has a mask: it is issued as the others."""
    for number, (leaves, store, ends) in enumerate(zip(instructions, instructions[1:], instructions[2:])):
        is_last = leaves.falls_through and store.access == "store" and not ends.falls_through
        if is_last and leaves.opcode == ends.opcode == "EXIT":
            instructions[number] = replace(leaves, targets=())
    return instructions


def _with_jumps(instructions, called):
    """Calls that do not return are jumps: ptxas leaves loops by them, on sm_80."""
    for number, start in called.items():
        if not _returns(instructions, start):
            call = instructions[number]
            guarded = call.text.startswith("@")
            instructions[number] = replace(call, targets=(start,), falls_through=guarded, call=False)
    return instructions


def _returns(instructions, start):
    """Whether the code from here on comes to a RET: it is a subroutine's."""
    seen, ahead = set(), [start]
    while ahead:
        number = ahead.pop()
        if number in seen or not 0 <= number < len(instructions):
            continue
        seen.add(number)
        if instructions[number].opcode.startswith("RET"):
            return True
        ahead += [*instructions[number].targets, *[number + 1] * instructions[number].falls_through]
    return False


def _onward(name, opcode, guard, rest, target):
    """(targets, falls through) of one instruction."""
    always = not guard or guard in ("PT", "UPT")
    if name == "EXIT":
        return (EXIT,), not always
    if name in ("RET", "BRX", "JMX", "KILL"):  # the end of a subroutine: calls are followed over, not into
        return (EXIT,), not always
    if name == "BSYNC":
        return (() if target is None else (target,)), target is None
    if name in ("BRA", "JMP"):
        if target is None:
            raise ValueError(f"the branch {opcode}{rest} goes to no instruction of the kernel")
        unconditional = always and "," not in rest  # a comma follows a condition: BRA P0, 0x50
        return (target,), not unconditional
    return (), True


def _jumps_to_itself(line):
    address, _, opcode, rest = line
    return opcode == "BRA" and _target(rest) == address


def _target(rest):
    match = ADDRESS.search(rest)
    return int(match.group(1), 16) if match else None


def _barrier(rest):
    match = re.search(r"\bB\d+\b", rest)
    return match.group(0) if match else None


def _width(opcode):
    return next((WIDTHS[part] for part in opcode.split(".")[1:] if part in WIDTHS), 32)
