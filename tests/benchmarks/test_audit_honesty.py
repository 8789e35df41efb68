"""What the counts of the audit leave out, it says: on loops, matrices, clusters and divided warps."""

import pytest
import torch

pytest.importorskip("triton")

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from tests.benchmarks import sample_kernels as kernels
from tests.benchmarks.test_audit import BLOCK, NVIDIA, audited, full, meta
from vae_fast.benchmarks.audit import Budget, check
from vae_fast.benchmarks.cards import CARDS, bound
from vae_fast.benchmarks.launches import TARGETS

pytestmark = pytest.mark.compiled_only


@gluon.jit
def copies(x, y, BLOCK: gl.constexpr, LAYOUT: gl.constexpr):
    at = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, layout=LAYOUT)
    gl.store(y + at, gl.load(x + at))


@pytest.mark.parametrize("target", TARGETS)
def test_the_main_path_goes_through_the_loop_that_loads(target):
    """Its loads are narrow beside the store, and it may have no round: it could be taken for a tail."""
    table, index = meta((100, 999), torch.bfloat16), meta(50, torch.int32)
    block = 2 * BLOCK  # of fewer elements triton 3.8 makes two rounds one for gfx942, with a last one apart
    report = audited(target, kernels.sums_of_gathered_rows, table, index, meta(block), 50, 999, BLOCK=block)
    assert (report.loops, report.skipped) == (1, 0)
    assert report.loads[16] == block / report.threads
    assert any("narrower than 128 bits" in failure for failure in check(report, Budget()))


@pytest.mark.parametrize("target", TARGETS)
def test_a_loop_that_is_left_out_is_a_failure(target):
    """It may have no round, so the main path goes around all the work."""
    report = audited(target, kernels.iterates, meta(8192), meta(8192), 20)
    assert (report.loops, report.skipped) == (0, 1)
    assert "; 1 loops left out" in str(report)
    (failure,) = check(report, Budget())
    assert failure.endswith("main path leaves out 1 loops, which may do the work; allowed: 0")
    assert check(report, Budget(skipped=1)) == check(report, Budget(skipped=None)) == []


@pytest.mark.parametrize("target", TARGETS)
def test_matrices_are_counted_apart_and_bound_nothing(target):
    """Their units have rates of their own: "memory" would be said of every product."""
    half = meta((64, 64), torch.float16)
    report = audited(target, kernels.dot_in_a_loop, half, meta((640, 64), torch.float16), meta((64, 64)), 640, BLOCK=64)
    assert (report.loops, report.skipped) == (1, 0)
    assert report.matrices > 0
    assert report.pipes["other"] == 0
    card = next(card for card in CARDS.values() if card.target == target)
    with pytest.raises(ValueError, match=f"^dot_in_a_loop on {target} multiplies matrices: what bounds it cannot be"):
        bound(report, 4, card)


def test_groups_of_warps_with_code_of_their_own_are_a_failure():
    half = meta((128, 512), torch.float16)
    arguments = half, half, meta((128, 128)), 512
    report = audited("sm_100", kernels.divides_its_warps, *arguments, BLOCK=128)
    assert report.divided
    said = "groups of warps have code of their own, and only one group's is counted"
    assert any(said in failure for failure in check(report, Budget()))
    assert said in str(report)
    assert not audited("sm_80", kernels.divides_its_warps, *arguments, BLOCK=128).divided


def test_a_program_of_several_blocks():
    """Each thread of both takes its share."""
    report = full("sm_90", torch.float32, num_ctas=2)
    assert report.threads == 2 * 4 * 32
    assert report.bytes == 8


@pytest.mark.parametrize("target", NVIDIA)
def test_the_fast_path_of_a_long_division(target):
    report = audited(target, kernels.divides, meta(8192, torch.int64), meta(8192, torch.int64), 7)
    assert report.calls == 0
    assert report.issued > 20


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_in_gluon(target):
    layout = gl.BlockedLayout([4], [TARGETS[target].warp_size], [4], [0])
    report = audited(target, copies, meta(8192), meta(8192), LAYOUT=layout)
    assert report.loads == report.stores == {128: BLOCK // (4 * report.threads)}
    assert check(report, Budget(issued=4)) == []
