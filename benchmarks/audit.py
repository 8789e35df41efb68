"""The machine code of Triton kernels, compiled with no GPU present, held against a budget.

On any kernel of your own, with CPU or "meta" tensors (TRITON_INTERPRET must be unset):

    from vae_fast.benchmarks.audit import Budget, audit, check
    from vae_fast.benchmarks.launches import record_launches

    with record_launches() as launches:
        my_kernel[(4,)](x, y, n, BLOCK=1024, num_warps=4)     # or any code that ends in such launches; nothing is run
    report = audit(launches[0], "sm_90", elements=("BLOCK",))
    print(report)
    assert check(report, Budget(issued=40, integer=20, special=3, narrow=1)) == []

`vae_fast.benchmarks.cards` says what bounds it on a card: bound(report, 8, CARDS["h100"]), at 8 bytes an element.

Counts are per element and of the main path (see `controlflow`): full tiles, without the masked tail. An element's
share is what all threads of a program issue, over the elements that it takes; predicated instructions count as issued.
A loop's body is counted once, as it is compiled: where the compiler has unrolled it, or loads ahead, the path has
several rounds, and what stands before and behind the loop besides. `report.bytes` over the bytes that an element needs
tells how many: give `elements` so that the two agree. Where loads run ahead, the path may have more rounds of them than
of the rest; with `num_stages=1` it has as many.

Atomics are issued, but in neither `loads`, `stores` nor `bytes`; nor are scalars that AMD's scalar unit loads. A number
that one thread stores, such as a partial sum, is in `bytes` as if each did; on NVIDIA it may be left out.

A loop can be left out, or left in its first round, where the rest has no wide access: `report.skipped` counts these,
and `check` allows none unless the budget does. What else the counts cannot say, of a kernel that calls subroutines,
copies whole tiles or divides its warps, is in `report.unsaid`, and fails too.
"""

import hashlib
import numbers
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import triton
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.cache import get_cache_manager

from vae_fast import checks
from vae_fast.benchmarks import gcn, sass
from vae_fast.benchmarks.controlflow import Instruction, main_path
from vae_fast.benchmarks.launches import TARGETS, Launch

NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Resources:
    registers: int
    spilled: int  # bytes a thread spills; AMD: 4 a register
    local: int  # bytes of local memory of a thread, spills included


@dataclass(frozen=True)
class Audit:
    """One kernel, as specialised for one launch, on one target."""

    kernel: str
    target: str
    threads: int  # of a program
    elements: int  # that a program takes on its main path
    shared: int  # bytes of shared memory of a program; of each of its `num_ctas` blocks
    resources: Resources
    loops: int  # loop bodies on the main path, each counted once: `elements` must be those of the rounds in it
    skipped: int  # loops that the main path leaves out: those of tails, or ones that do the work (see `controlflow`)
    calls: int  # subroutines that the main path calls; their instructions are not counted
    divided: bool  # whether groups of its warps have code of their own: the main path is that of one
    matrices: int  # instructions that multiply matrices, in the whole code: one thread issues those of sm_100
    instructions: int  # in the whole code, all paths
    main: tuple[Instruction, ...] = field(repr=False)

    @property
    def pipes(self):
        """Instructions of the main path by pipe: what one thread issues."""
        return Counter(i.pipe for i in self.main)

    @property
    def loads(self):
        """Global loads of one thread on the main path, by width in bits."""
        return Counter(i.bits for i in self.main if i.access == "load")

    @property
    def stores(self):
        """Global stores of one thread on the main path, by width in bits."""
        return Counter(i.bits for i in self.main if i.access == "store")

    @property
    def bytes(self):
        """Bytes of global loads and stores per element."""
        return self._per_element(sum(i.bits for i in self.main if i.access in ("load", "store")) / 8)

    @property
    def uncounted(self):
        """Instructions of the main path that copy whole tiles, as of tensor descriptors: their bytes are not seen."""
        return sum(i.opcode.startswith(sass.BULK) for i in self.main)

    @property
    def unsaid(self):
        """What the counts do not say, a line each; empty where they are whole."""
        lines = []
        if self.calls:
            lines.append(f"calls {self.calls} subroutines on the main path")
        if self.uncounted:
            lines.append(f"main path has {self.uncounted} copies of whole tiles, whose bytes are not counted")
        if self.divided:
            lines.append("groups of warps have code of their own, and only one group's is counted")
        return lines

    @property
    def issued(self):
        """Instructions issued per element."""
        return self._per_element(len(self.main))

    @property
    def integer(self):
        """Integer, logic and compare instructions per element; multiplications, on the FMA pipe, are apart."""
        return self._per_element(self.pipes["integer"])

    @property
    def special(self):
        """Special functions and conversions between int and float per element."""
        return self._per_element(self.pipes["special"])

    @property
    def floating(self):
        """Float arithmetic per element."""
        return self._per_element(self.pipes["float"])

    def _per_element(self, count):
        return count * self.threads / self.elements

    def __str__(self):
        widths = " ".join(
            f"{kind} {'+'.join(f'{count}x{bits}' for bits, count in sorted(counts.items(), reverse=True)) or 0}"
            for kind, counts in (("loads", self.loads), ("stores", self.stores))
        )
        used = self.resources
        return (
            f"{self.kernel} {self.target}: {used.registers} registers, {used.spilled} spilled, {used.local} local, "
            f"{self.shared} shared; {widths}; per element {self.issued:.1f} issued, {self.integer:.1f} integer, "
            f"{self.special:.2f} special, {self.floating:.1f} float, {self.bytes:.4g} bytes"
            + (f"; {self.loops} loops, a round of each as compiled" if self.loops else "")
            + (f"; {self.skipped} loops left out" if self.skipped else "")
            + "".join(f"; {line}" for line in self.unsaid)
        )


@dataclass(frozen=True)
class Budget:
    """Upper bounds per element (None: none), and how wide global accesses must be.

    `narrow` accesses of one thread may be narrower than `bits`: those of a seed, a scalar, a partial sum. The main path
    may leave out `skipped` loops: those of a tail, or of the slow path of a function.
    """

    issued: float | None = None
    integer: float | None = None
    special: float | None = None
    bits: int = 128
    narrow: int = 0
    skipped: int | None = 0


def check(report: Audit, budget: Budget) -> list[str]:
    """What is wrong with an `Audit`, one line each; an empty list where nothing is."""
    failures = []
    used = report.resources
    if used.spilled:
        failures.append(f"spills {used.spilled} bytes a thread ({used.registers} registers)")
    if used.local:
        failures.append(f"uses {used.local} bytes of local memory a thread")
    failures += report.unsaid
    if budget.skipped is not None and report.skipped > budget.skipped:
        skipped = f"{report.skipped} loops, which may do the work; allowed: {budget.skipped}"
        failures.append(f"main path leaves out {skipped}")
    narrow = {bits: count for bits, count in (report.loads + report.stores).items() if bits < budget.bits}
    if sum(narrow.values()) > budget.narrow:
        listed = ", ".join(f"{count} of {bits}" for bits, count in sorted(narrow.items()))
        failures.append(f"main path has accesses narrower than {budget.bits} bits: {listed}; allowed: {budget.narrow}")
    for pipe in ("issued", "integer", "special"):
        count, limit = getattr(report, pipe), getattr(budget, pipe)
        if limit is not None and count > limit:
            failures.append(f"{count:.2f} {pipe} instructions per element, over the budget of {limit:g}")
    return [f"{report.kernel} on {report.target}: {failure}" for failure in failures]


def audit(launch: Launch, target: str, *, elements: int | str | Sequence[str]) -> Audit:
    """Compile what a `Launch` would run on "sm_80", "sm_90", "sm_100" or "gfx942", and read the machine code.

    elements: how many elements a program takes (in a loop's rounds, see above); or the names of the constexpr arguments
    whose product that is, such as ("ROWS", "COLUMNS"). Raises TypeError for what is no Launch, and ValueError for
    another target, another name, or no elements.
    """
    if not isinstance(launch, Launch):
        kind = type(launch).__name__
        raise TypeError(f"launch is a {kind}: expected a Launch, one of those in the list of record_launches")
    checks.choice("target", target, TARGETS)
    elements = _count(launch, elements)
    compiled = compile_launch(launch, target)
    if "cubin" in compiled.asm:
        code, resources = _nvidia(compiled, TARGETS[target])
    else:
        code, resources = gcn.parse(compiled.asm["amdgcn"]), _amd(compiled.asm["amdgcn"])
    path = main_path(code)
    return Audit(
        kernel=launch.name,
        target=target,
        threads=compiled.metadata.num_warps * compiled.metadata.num_ctas * TARGETS[target].warp_size,
        elements=elements,
        shared=compiled.metadata.shared,
        resources=resources,
        loops=path.loops,
        skipped=path.skipped,
        calls=sum(i.call for i in path.instructions),
        divided=compiled.metadata.num_warps != launch.specialize(TARGETS[target]).options.num_warps,
        matrices=sum(i.pipe == "matrix" for i in code),
        instructions=len(code),
        main=tuple(path.instructions),
    )


def compile_launch(launch, target):
    """Triton's compiled kernel for a `Launch`; Triton's own cache on disk keeps it."""
    special = launch.specialize(TARGETS[target])
    kind = GluonASTSource if launch.kernel.is_gluon() else ASTSource
    source = kind(launch.kernel, special.signature, special.constants, special.attributes)
    return triton.compile(source, target=TARGETS[target], options=vars(special.options))


def _count(launch, elements):
    """`elements` as an int: the number, or the product of the arguments that it names."""
    count = elements if isinstance(elements, numbers.Integral) else _product(launch, elements)
    if count < 1:
        raise ValueError(f"elements is {count}: expected 1 or more")
    return int(count)


def _product(launch, names):
    given, names = names, (names,) if isinstance(names, str) else names
    if not isinstance(names, (tuple, list)) or not names:
        raise ValueError(f"elements is {given!r}: expected an int, or names of constexpr ints of {launch.name}")
    arguments = launch.arguments
    known = {p.name: arguments[p.name] for p in launch.kernel.params if p.is_constexpr}
    sizes = [getattr(known.get(name), "value", known.get(name)) for name in names]
    for name, size in zip(names, sizes, strict=True):
        if not isinstance(size, numbers.Integral):
            raise ValueError(f"elements names {name!r}: expected constexpr ints of {launch.name}, or their number")
    return prod(sizes)


def _nvidia(compiled, target):
    """Instructions and resources of a cubin. Local memory that is no spill is an array, as in the slow path of sin."""
    cubin = compiled.asm["cubin"]
    listing = _cached(cubin, lambda: _disassemble(cubin))
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing)}
    code = sass.parse(listing)
    local = max(usage["STACK"], usage["LOCAL"]) or 4 * sum(i.opcode.startswith(sass.LOCAL) for i in code)
    spilled = _spilled(compiled.asm["ptx"], target.arch) if local else 0
    return code, Resources(usage["REG"], spilled, local)


def _disassemble(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _run(NVIDIA_TOOLS / "cuobjdump", "-sass", "-res-usage", file.name).stdout


def _spilled(ptx, arch):
    """Bytes of spill loads and stores, which ptxas alone tells from other local memory."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        name = sm_arch_from_capability(arch)
        log = _run(get_ptxas(arch).path, "-v", f"--gpu-name={name}", source, "-o", Path(folder, "kernel.cubin")).stderr
    return max((int(size) for size in re.findall(r"(\d+) bytes spill (?:stores|loads)", log)), default=0)


def _run(tool, *arguments):
    """cuobjdump calls nvdisasm, which lies beside it."""
    environment = {**os.environ, "PATH": f"{NVIDIA_TOOLS}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.run([tool, *arguments], capture_output=True, text=True, env=environment, check=True)


def _cached(binary, disassemble):
    """The disassembly, kept in Triton's cache on disk: it takes longer than a compilation found there."""
    cache = get_cache_manager(hashlib.sha256(b"sass and resource usage" + binary).hexdigest())
    found = cache.get_file("kernel.sass")
    if found:
        return Path(found).read_text()
    listing = disassemble()
    cache.put(listing, "kernel.sass", binary=False)
    return listing


def _amd(assembly):
    def number(key):
        return int(re.search(rf"\.{key}:\s*(\d+)", assembly).group(1))

    spilled = 4 * (number("vgpr_spill_count") + number("sgpr_spill_count"))
    return Resources(number("vgpr_count"), spilled, number("private_segment_fixed_size"))
