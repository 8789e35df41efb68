"""Runs the PTX that Triton makes of a kernel, without a GPU: all threads of many programs at once, in NumPy.

    with emulated("sm_90"):
        launcher(*cpu_tensors)

A `Fault` is an access outside a tensor's elements or outside shared memory, or at an address that its width does not
divide; a second store to an element; a barrier or a shuffle that a part of the threads reaches. Where nothing was
written there is NaN. Threads go in step, so that no barrier is missed here, and what ptxas makes of it is not seen.
"""

import contextlib
from unittest.mock import patch

import numpy as np
from triton.runtime import jit

from tests.kernels.ptx_arithmetic import TYPES, compared, result
from tests.kernels.ptx_code import parse
from tests.kernels.ptx_memory import Fault, Memory, elements
from vae_fast import use_backend
from vae_fast.benchmarks.audit import compile_launch
from vae_fast.benchmarks.launches import TARGETS, Launch
from vae_fast.kernels.launching import planning_anew
from vae_fast.ops import backend

POISON = {0: True, 2: 0x7FFB, 4: 0x7FFBAD01, 8: 0x7FFBAD017FFBAD01}  # odd: no wide access is aligned there
SCALARS = {"i1": "i1", "i8": "i1", "i32": "i4", "i64": "i8", "fp32": "f4", "fp64": "f8"}
LANES = 8192  # threads at once
MOST_BLOCKS = 100_000


class Machine:
    """Some programs of a launch. A register is one number for each thread, or one for all."""

    def __init__(self, code, parameters, memory, shared, threads, programs):
        self.code, self.parameters, self.memory, self.threads = code, parameters, memory, threads
        self.lane = np.arange(threads * len(programs))
        program = self.lane // threads
        self.shared_start = program << 32
        unwritten = np.full(shared, 0xFF, np.uint8), np.ones(shared, bool)
        self.shared = Memory({k << 32: unwritten for k in range(len(programs))}, once=False)
        self.registers = {
            "%tid.x": (self.lane % threads).astype(np.uint32),
            "%ctaid.x": (programs[0] + program).astype(np.uint32),
            "global_smem": np.zeros(1, np.uint32),
        }

    def run(self):
        """A block is run by the threads that are furthest behind, all that stand there: so they meet where they can."""
        code, at = self.code, np.zeros(len(self.lane), np.int64)
        ends = dict(zip(code.blocks, code.blocks[1:], strict=False))
        for _ in range(MOST_BLOCKS):
            start = at.min()
            if start == code.blocks[-1]:
                return
            self.here = at == start
            for each in code.instructions[start : ends[start]]:
                try:
                    if each.op not in ("bra", "ret"):
                        self._step(each)
                except Fault as fault:
                    raise Fault(f"{fault}: `{each.text}`") from None
            at[self.here] = ends[start]
            if each.op in ("bra", "ret"):
                at[self._doing(each)] = code.labels[each.operands[0]] if each.op == "bra" else code.blocks[-1]
        raise Fault("does not end")

    def _step(self, each):
        method = getattr(self, f"_{each.op}", None)
        if method is None:
            self._put(each, each.operands[0], result(each, self._get))
        else:
            method(each)

    def _doing(self, each):
        """The threads that carry out an instruction."""
        return self.here & (self._get(each.guard, "pred") != each.unless) if each.guard else self.here

    def _size(self, register):
        return self.code.sizes[register if register in self.code.sizes else register.rstrip("0123456789")]

    def _get(self, operand, kind):
        """An operand's numbers, as this type."""
        dtype = TYPES[kind]
        if isinstance(operand, int):
            return np.array([operand % 2 ** (8 * dtype.itemsize)], f"u{dtype.itemsize}").view(dtype)
        if operand not in self.registers:
            size = self._size(operand)
            self.registers[operand] = np.array([POISON[size]], f"u{size}" if size else bool)
        bits = self.registers[operand]
        return bits if bits.dtype == bool else bits.astype(f"u{dtype.itemsize}", copy=False).view(dtype)

    def _each(self, operand, kind, lanes):
        return np.broadcast_to(self._get(operand, kind), self.lane.shape)[lanes]

    def _put(self, each, register, value):
        """Write a register in the threads that carry the instruction out."""
        if register == "_":
            return
        size = self._size(register)
        if size:  # a narrower integer is extended, by its sign if it has one
            value = value.astype(f"{value.dtype.kind}{size}", copy=False).view(f"u{size}")
        doing = self._doing(each)
        if not doing.all():
            value = np.where(doing, value, self._get(register, f"u{8 * size}" if size else "pred"))
        self.registers[register] = value

    def _put_in(self, each, register, lanes, value):
        whole = np.zeros(self.lane.shape, value.dtype)
        whole[lanes] = value
        self._put(each, register, whole)

    def _mov(self, each):
        """One register to another, or to its parts, or parts to one."""
        (target, source), kind = each.operands, each.types[-1]
        targets, sources = (o if isinstance(o, list) else [o] for o in (target, source))
        part = f"u{8 * TYPES[kind].itemsize // len(sources)}" if sources[1:] else kind
        whole = np.stack(np.broadcast_arrays(*(self._get(o, part) for o in sources)), 1)
        if targets[1:] or sources[1:]:
            whole = whole.view(f"u{TYPES[kind].itemsize // len(targets)}")
        for register, value in zip(targets, whole.T, strict=True):
            self._put(each, register, np.ascontiguousarray(value))

    def _setp(self, each):
        target, *operands = each.operands
        kind = each.types[-1]
        if kind not in ("f16x2", "bf16x2"):
            self._put(each, target, compared(each, kind, *(self._get(o, kind) for o in operands)))
            return
        for register, shift in zip(target.split("|"), (0, 16), strict=True):  # the low half first
            halves = ((self._get(o, "b32") >> shift).astype(np.uint16).view(TYPES[kind[:-2]]) for o in operands)
            self._put(each, register, compared(each, kind[:-2], *halves))

    # Memory

    def _ld(self, each):
        target, address = each.operands
        dtype = TYPES[each.types[-1]]
        if "param" in each.modifiers:
            self._put(each, target, self.parameters[address[0]].view(dtype))
            return
        targets, lanes = target if isinstance(target, list) else [target], np.nonzero(self._doing(each))[0]
        if lanes.size:
            data = self._space(each).load(self._address(each, address, lanes), dtype.itemsize * len(targets))
            for register, value in zip(targets, data.view(dtype).T, strict=True):
                self._put_in(each, register, lanes, value)

    def _st(self, each):
        address, source = each.operands
        sources, lanes = source if isinstance(source, list) else [source], np.nonzero(self._doing(each))[0]
        if lanes.size:
            data = np.stack([self._each(register, each.types[-1], lanes) for register in sources], 1)
            self._space(each).store(self._address(each, address, lanes), data.view(np.uint8))

    def _ldmatrix(self, each):
        """Each register gets an 8 x 8 matrix, whose rows lie at the addresses that eight threads have."""
        targets, address = each.operands
        warps = self._whole_warps(each)
        for k, register in enumerate(targets if isinstance(targets, list) else [targets]):
            rows = self.shared.load(self._address(each, address, warps[:, 8 * k : 8 * k + 8].ravel()), 16)
            self._put_in(each, register, warps.ravel(), _turned(each, rows).view(np.uint32).ravel())

    def _stmatrix(self, each):
        address, sources = each.operands
        warps = self._whole_warps(each)
        for k, register in enumerate(sources if isinstance(sources, list) else [sources]):
            rows = _turned(each, np.ascontiguousarray(self._each(register, "b32", warps.ravel())))
            addresses = self._address(each, address, warps[:, 8 * k : 8 * k + 8].ravel())
            self.shared.store(addresses, rows.view(np.uint8).reshape(-1, 16))

    def _space(self, each):
        return self.memory if "global" in each.modifiers else self.shared

    def _address(self, each, operand, lanes):
        name, offset = operand
        if name not in self.registers:
            raise Fault("an address that nothing was written to")
        at = np.broadcast_to(self.registers[name], self.lane.shape)[lanes].astype(np.int64) + offset
        return at if "global" in each.modifiers else at + self.shared_start[lanes]

    # What threads do together

    def _whole_warps(self, each, size=32):
        """The lanes of each warp, or program, that carries an instruction out: all, or none."""
        doing = self._doing(each).reshape(-1, size)
        if (doing.any(1) != doing.all(1)).any():
            raise Fault("reached by a part of the threads")
        return self.lane.reshape(-1, size)[doing.all(1)]

    def _bar(self, each):
        self._whole_warps(each, 32 if "warp" in each.modifiers else self.threads)

    def _shfl(self, each):
        target, source, other, clamp, _ = each.operands
        if each.modifiers[1] not in ("bfly", "idx") or clamp != 31:
            raise NotImplementedError(each.text)
        lanes = self._whole_warps(each).ravel()
        other = self._each(other, "s32", lanes)
        other = lanes ^ other if "bfly" in each.modifiers else lanes // 32 * 32 + other % 32
        self._put_in(each, target, lanes, self._each(source, "b32", other))

    def _redux(self, each):
        """The largest number of each warp."""
        target, source, _ = each.operands
        if "max" not in each.modifiers:
            raise NotImplementedError(each.text)
        warps = self._whole_warps(each)
        numbers = self._each(source, each.types[-1], warps)
        largest = np.maximum if "NaN" in each.modifiers else np.fmax
        self._put_in(each, target, warps, np.broadcast_to(largest.reduce(numbers, 1)[:, None], warps.shape))


def _turned(each, rows):
    rows = rows.view(np.uint16).reshape(-1, 8, 8)
    return np.ascontiguousarray(rows.swapaxes(1, 2)) if "trans" in each.modifiers else rows


def run(launch, target):
    """Run a `Launch` whose tensors lie on the CPU."""
    compiled, types = compile_launch(launch, target), launch.specialize(TARGETS[target]).signature
    code, tensors, numbers = parse(compiled.asm["ptx"]), [], []
    for value, kind in _leaves([launch.arguments[name] for name in types], types.values()):
        if kind.startswith("*"):
            tensors.append(value)
            numbers.append(np.array([value.data_ptr()]))
        else:
            numbers.append(np.array([value], SCALARS[kind]))
    numbers += [np.zeros(1, np.int64)] * 2  # Triton's own scratch memory and that of its profiler: none
    parameters = dict(zip(code.parameters, numbers, strict=True))
    runs = elements(tensors)
    memory = Memory(runs, once=True)
    run_programs(code, parameters, memory, compiled.metadata.shared, 32 * compiled.metadata.num_warps, launch.grid[0])
    for start, offset in zip(memory.starts, memory.offsets, strict=True):
        own, _ = runs[start]
        own[...] = memory.data[offset : offset + len(own)]


def run_programs(code, parameters, memory, shared, threads, programs):
    """Run a launch of parsed code. parameters: the bytes of each, by its name in the code."""
    together = max(LANES // threads, 1)
    with np.errstate(all="ignore"):
        for first in range(0, programs, together):
            some = range(first, min(first + together, programs))
            Machine(code, parameters, memory, shared, threads, some).run()


def _leaves(values, types):
    """The arguments that are none of the constants, each with its type; those in tuples too."""
    for value, kind in zip(values, types, strict=True):
        if isinstance(kind, tuple):
            yield from _leaves(value, kind)
        elif kind != "constexpr":
            yield value, kind


@contextlib.contextmanager
def emulated(target):
    """Within the block Triton's kernels take CPU tensors: each launch is compiled for `target`, and run here."""

    def execute(kernel, *args, grid, warmup=False, **kwargs):
        run(Launch(kernel, grid, args, kwargs), target)

    with (
        patch.object(jit.JITFunction, "run", execute),
        patch.object(backend, "interpreting", lambda: True),
        planning_anew(),
        use_backend("triton"),
    ):
        yield
