"""The machine-code audit: right on known kernels, the main path found, and the bad kernels caught."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from tests.benchmarks import sample_kernels as kernels
from tests.benchmarks.test_controlflow import nvidia
from tests.support.environment import TRITON
from vae_fast.benchmarks import audit as tool
from vae_fast.benchmarks.audit import Budget, Resources, audit, check
from vae_fast.benchmarks.cards import CARDS, H200, bound
from vae_fast.benchmarks.launches import TARGETS, record_launches

pytestmark = pytest.mark.compiled_only

BLOCK = 2048
NVIDIA = ["sm_80", "sm_90", "sm_100"]
F = kernels.square_plus_exp


def recorded(kernel, *args, grid=(4,), **kwargs):
    with record_launches() as launches:
        kernel[grid](*args, **kwargs)
    return launches[0]


def audited(target, kernel, *args, elements=("BLOCK",), **kwargs):
    return audit(recorded(kernel, *args, **{"BLOCK": BLOCK, "num_warps": 4, **kwargs}), target, elements=elements)


def meta(size, dtype=torch.float32):
    return torch.empty(size, dtype=dtype, device="meta")


def full(target, dtype, **kwargs):
    return audited(target, kernels.full_tiles, meta(8192, dtype), meta(8192, dtype), FUNCTION=F, **kwargs)


@pytest.mark.parametrize("target", TARGETS)
def test_a_good_kernel(target):
    report = full(target, torch.float32)
    assert report.kernel == "full_tiles"
    assert report.elements == BLOCK
    assert report.threads == 4 * (64 if target == "gfx942" else 32)
    assert report.resources.registers > 0
    accesses = BLOCK * 32 // (report.threads * 128)
    assert report.loads == report.stores == {128: accesses}
    assert report.special == 1.0  # one exp an element
    assert report.floating >= 2.0
    assert sum(report.pipes.values()) == len(report.main)
    assert report.pipes["other"] == 0
    assert report.loops == report.calls == 0
    assert check(report, Budget(issued=20, integer=8, special=1)) == []
    assert f"full_tiles {target}" in str(report)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kernel", [kernels.tiles_and_tail, kernels.tiles_and_tail_around_shared_maths, kernels.persistent]
)
def test_the_main_path_leaves_the_tail_out(kernel, dtype, target):
    """With a tail, the count is that of the kernel which has none, and a little for choosing; not of both paths."""
    extra = (4,) if kernel is kernels.persistent else ()
    report = audited(target, kernel, meta(9001, dtype), meta(9001, dtype), 9001, *extra, FUNCTION=F)
    without = full(target, dtype)
    assert report.loads == without.loads
    assert report.stores == without.stores
    assert report.special == without.special
    per_thread = BLOCK / report.threads
    masks = 4 * per_thread if kernel is kernels.tiles_and_tail_around_shared_maths else 0  # made before the choice
    assert len(without.main) <= len(report.main) <= len(without.main) + 40 + masks
    assert len(report.main) < 0.75 * report.instructions
    assert report.loops == (kernel is kernels.persistent)


@pytest.mark.parametrize("target", TARGETS)
def test_the_main_path_does_not_return_early(target):
    report = audited(target, kernels.early_return, meta(1), meta(8192), meta(8192), FUNCTION=F)
    without = full(target, torch.float32)
    assert report.stores == without.stores
    assert len(without.main) <= len(report.main) <= len(without.main) + 15


def test_catches_a_spill():
    report = audited("sm_90", kernels.holds_its_whole_tile, meta(8192), meta(8192), BLOCK=8192, num_warps=1)
    failures = check(report, Budget())
    assert any("full_tiles" not in f and "on sm_90: spills" in f for f in failures), failures
    assert any("bytes of local memory" in f for f in failures)
    assert report.resources.spilled > 0


def test_catches_a_spill_on_amd():
    report = audited("gfx942", kernels.holds_its_whole_tile, meta(32768), meta(32768), BLOCK=32768, num_warps=1)
    assert any("spills" in f for f in check(report, Budget()))


@pytest.mark.skipif(TRITON >= (3, 9), reason="its cosine has no array on the stack")
def test_catches_local_memory_that_is_no_spill():
    report = audited("sm_90", kernels.cosine, meta(8192), meta(8192))
    assert report.resources.spilled == 0
    failures = check(report, Budget(skipped=None))
    assert len(failures) == 1
    assert "bytes of local memory" in failures[0]


@pytest.mark.parametrize("target", TARGETS)
def test_catches_narrow_accesses(target):
    x, y = meta(8193, torch.bfloat16)[1:], meta(8192, torch.bfloat16)  # one element off 16-byte alignment
    report = audited(target, kernels.full_tiles, x, y, FUNCTION=F)
    failures = check(report, Budget())
    assert len(failures) == 1
    assert f"on {target}: main path has accesses narrower than 128 bits: {BLOCK // report.threads} of 16" in failures[0]
    assert check(report, Budget(narrow=BLOCK // report.threads)) == []
    assert check(report, Budget(bits=16)) == []


def test_catches_each_count_over_its_budget():
    report = full("sm_90", torch.float32)
    failures = check(report, Budget(issued=report.issued - 0.1, integer=report.integer - 0.1, special=0.9))
    assert [f.split("instructions")[0].split()[-1] for f in failures] == ["issued", "integer", "special"]
    assert "1.00 special instructions per element, over the budget of 0.9" in failures[2]
    assert check(report, Budget(issued=report.issued, integer=report.integer, special=1.0)) == []


def test_elements_by_number_or_by_name():
    assert audited("sm_90", kernels.full_tiles, meta(8192), meta(8192), FUNCTION=F, elements=512).elements == 512
    for elements in (("BLOCK",), "BLOCK", ["BLOCK"], np.int64(BLOCK)):
        report = audited("sm_90", kernels.full_tiles, meta(8192), meta(8192), FUNCTION=F, elements=elements)
        assert report.elements == BLOCK
        assert report.bytes == 8


@pytest.mark.parametrize("elements", [("ROWS", "BLOCK"), ("FUNCTION",), ("n",), "BLOK"], ids=str)
def test_elements_of_another_name_are_refused(elements):
    """A misspelt one would divide by too few elements, and a runtime argument is not that of the machine code."""
    name = elements if isinstance(elements, str) else elements[0]
    message = f"^elements names '{name}': expected constexpr ints of tiles_and_tail, or their number$"
    with pytest.raises(ValueError, match=message):
        audited("sm_90", kernels.tiles_and_tail, meta(8192), meta(8192), 8192, FUNCTION=F, elements=elements)


def test_no_elements_and_another_target_are_refused():
    for elements in (1.5, None, ()):
        with pytest.raises(
            ValueError, match=f"^elements is {re.escape(repr(elements))}: expected an int, or names of "
        ):
            full("sm_90", torch.float32, elements=elements)
    with pytest.raises(ValueError, match="^elements is 0: expected 1 or more$"):
        full("sm_90", torch.float32, elements=0)
    with pytest.raises(ValueError, match="^target is 'sm_75': expected one of 'sm_80', 'sm_90', 'sm_100', 'gfx942'$"):
        full("sm_75", torch.float32)
    with pytest.raises(ValueError, match=r"^target is \['sm_90'\]: expected one of "):
        full(["sm_90"], torch.float32)
    with pytest.raises(TypeError, match="^launch is a JITFunction: expected a Launch, one of those in "):
        audit(kernels.full_tiles, "sm_90", elements=1)


def test_a_loop_that_is_unrolled_shows_in_the_bytes():
    """ptxas takes several rounds at once; `bytes` tells how many, and with so many elements the rest is right."""
    report = audited("sm_90", kernels.sum_in_a_loop, meta(8192), meta(4), 8192)
    assert report.loops == 1
    assert "1 loops, a round of each as compiled" in str(report)
    rounds = round(report.bytes / 4)
    assert rounds > 1
    whole = audited("sm_90", kernels.sum_in_a_loop, meta(8192), meta(4), 8192, elements=rounds * BLOCK)
    assert whole.bytes == pytest.approx(4, rel=0.01)
    assert whole.issued == pytest.approx(report.issued / rounds)


def test_copies_of_whole_tiles_are_a_failure():
    """Their bytes are in a descriptor, not in the code."""
    report = audited("sm_90", kernels.copy_of_a_whole_tile, meta((512, 64)), meta((512, 64)), 512, BLOCK=64)
    assert report.loads == report.stores == {}
    (failure,) = check(report, Budget())
    said = "main path has 2 copies of whole tiles, whose bytes are not counted"
    assert said in failure
    assert said in str(report)


def test_the_resource_that_bounds_a_kernel():
    report = full("sm_90", torch.float32)
    resource, load = bound(report, 8, H200)
    assert resource == "memory"
    assert max(load.values()) < 1
    resource, load = bound(report, 0.5, H200)  # as if it moved almost nothing
    assert resource == "special"
    assert load["special"] == pytest.approx(1 / (0.97 * 0.5), rel=0.01)
    assert bound(report, 0, H200)[0] == "special"
    assert bound(replace(report, main=report.main[:1]), 0, H200)[0] != "memory"  # which bounds no kernel without any


def test_floats_bound_a_kernel_of_an_a100_sooner():
    """It has 64 lanes of them to a multiprocessor, where the later ones have 128."""
    report = full("sm_80", torch.float32)
    load = bound(report, 8, CARDS["a100"])[1]
    assert load["floating"] == pytest.approx(2 * report.floating / report.issued * load["issued"])
    load = bound(report, 8, H200)[1]
    assert load["floating"] == pytest.approx(report.floating / report.issued * load["issued"])


@pytest.mark.parametrize("target", TARGETS)
def test_catches_a_call(target):
    """On AMD the function that is called stands before the kernel."""
    report = audited(target, kernels.calls_a_function, meta(8192), meta(8192))
    assert report.calls == 1
    assert any("calls 1 subroutines" in failure for failure in check(report, Budget()))


@pytest.mark.parametrize("access", ["load", "store"])
def test_narrow_accesses_of_all_widths_and_directions_count(access):
    report = full("sm_90", torch.float32)
    odd = [replace(report.main[0], access=access, bits=bits) for bits in (32, 64)]
    report = replace(report, main=(*report.main, *odd))
    assert check(report, Budget(narrow=2)) == []
    (failure,) = check(report, Budget(narrow=1))
    assert failure.endswith("narrower than 128 bits: 1 of 32, 1 of 64; allowed: 1")


@pytest.mark.parametrize(("stack", "local", "known"), [(16, 0, 16), (0, 24, 24), (16, 24, 24), (0, 0, 8)])
def test_resources_on_nvidia(stack, local, known, monkeypatch):
    """Where cuobjdump names no local memory, what is stored and loaded there tells."""
    code = "/*0000*/ STL [R1], R2 ;\n/*0010*/ LDL R2, [R1] ;\n/*0020*/ EXIT ;"
    listing = f"Function kernel:\n REG:26 STACK:{stack} SHARED:0 LOCAL:{local} CONSTANT[0]:560\n{code}"
    monkeypatch.setattr(tool, "_cached", lambda cubin, disassemble: listing)
    monkeypatch.setattr(tool, "_spilled", lambda ptx, arch: 4)
    compiled = SimpleNamespace(asm={"cubin": b"", "ptx": ""})
    assert tool._nvidia(compiled, TARGETS["sm_90"])[1] == Resources(registers=26, spilled=4, local=known)


@pytest.mark.parametrize("kind", ["vgpr", "sgpr"])
def test_resources_on_amd(kind):
    numbers = {"vgpr_count": 64, "vgpr_spill_count": 0, "sgpr_spill_count": 0, "private_segment_fixed_size": 24}
    numbers[f"{kind}_spill_count"] = 2
    text = "\n".join(f"    .{name}: {number}" for name, number in numbers.items())
    assert tool._amd(text) == Resources(registers=64, spilled=8, local=24)


@pytest.mark.parametrize("opcode", ["UTMALDG.1D", "UTMASTG.1D", "UTMAREDG.1D.ADD", "UBLKCP.S.G", "UBLKRED.G.S.ADD"])
def test_each_copy_of_a_whole_tile_is_a_failure(opcode):
    report = full("sm_90", torch.float32)
    report = replace(report, main=(*report.main, *nvidia(f"{opcode} [UR4], [UR6]")))
    (failure,) = check(report, Budget())
    assert "main path has 1 copies of whole tiles" in failure


def test_atomics_are_not_in_the_bytes():
    report = full("sm_90", torch.float32)
    red = nvidia("RED.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR6][R2.64], R4", "EXIT")[0]
    assert (red.access, red.bits) == ("atomic", 32)
    assert replace(report, main=(*report.main, red)).bytes == report.bytes == 8


def test_lanes_and_bounds_of_cards():
    report = full("sm_90", torch.float32)
    load = bound(report, 8, H200)[1]
    assert load["integer"] == pytest.approx(2 * report.integer / report.issued * load["issued"])
    per_byte = CARDS["mi300x"].per_byte
    assert per_byte["issued"] == per_byte["floating"] == per_byte["integer"] == 4 * per_byte["special"]
    assert bound(report, 0.8, H200)[0] == "special"
    assert bound(report, 1.2, H200)[0] == "memory"
    assert CARDS["a100"].per_byte["issued"] == pytest.approx(128 * 108 * 1.41e9 / (0.9 * 2.04e12))
