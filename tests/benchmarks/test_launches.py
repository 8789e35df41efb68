"""What is recorded of launches, and what Triton would make of it."""

import pytest
import torch

pytest.importorskip("triton")

import triton

from tests.benchmarks import sample_kernels as kernels
from tests.benchmarks.test_audit import BLOCK, F, meta, recorded
from vae_fast.benchmarks.launches import TARGETS, record_launches, variants

pytestmark = pytest.mark.compiled_only


def test_nothing_is_run_and_all_is_noted():
    x, y = torch.zeros(100), torch.full((128,), 7.0)
    launch = recorded(kernels.add_all, (x, None, (2.0, 1)), y, 100, BLOCK=128, num_warps=8, grid=(3, 2))
    assert y.eq(7).all()
    assert (launch.name, launch.grid) == ("add_all", (3, 2))
    assert launch.arguments["BLOCK"] == 128
    assert launch.arguments["inputs"][1] is None
    assert launch.kwargs["num_warps"] == 8


def test_arguments_of_any_name():
    x = torch.empty(8, device="meta")
    with record_launches() as launches:
        kernels.convolves[(1,)](executor=x, kernel=x, y=x, BLOCK=8)
    assert launches[0].arguments["kernel"] is x


def test_the_grid_may_be_a_function():
    x = torch.zeros(1000)
    launch = recorded(kernels.full_tiles, x, x, FUNCTION=F, BLOCK=256, grid=lambda meta: (1000 // meta["BLOCK"],))
    assert launch.grid == (3,)


@pytest.mark.parametrize("target", TARGETS)
def test_specialises_as_the_launcher_of_triton_does(target):
    x = torch.zeros(101)
    launch = recorded(kernels.add_all, (x[1:], None, (2.0, 1)), x, 32, BLOCK=128, num_warps=8)
    special = launch.specialize(TARGETS[target])
    assert special.signature == {
        "inputs": ("*fp32", "constexpr", ("fp32", "constexpr")),
        "out": "*fp32",
        "n": "i32",
        "BLOCK": "constexpr",
    }
    assert special.constants == {(0, 1): None, (0, 2, 1): 1, (3,): 128}
    aligned = {path for path, facts in special.attributes.items() if ["tt.divisibility", 16] in facts}
    assert aligned == {(1,), (2,)}  # out and n; the first input starts 4 bytes off
    assert special.options.num_warps == 8


def test_meta_tensors_of_any_size():
    launch = recorded(kernels.full_tiles, meta(2**34), meta(2**34), FUNCTION=F, BLOCK=128)
    on_amd = launch.specialize(TARGETS["gfx942"]).attributes
    assert on_amd[0,] == [["tt.divisibility", 16]]  # beyond 2 GiB: no 32-bit offsets
    small = recorded(kernels.full_tiles, meta(64), meta(64), FUNCTION=F, BLOCK=128)
    assert ["tt.pointer_range", 32] in small.specialize(TARGETS["gfx942"]).attributes[0,]


def test_variants_are_what_compiles_differently():
    x, odd, half = meta(8192), meta(8193)[1:], meta(8192, torch.bfloat16)
    sizes = (x, 8192), (x, 4096), (odd, 8192), (x, 8191), (x, 1), (half, 8192)
    with record_launches() as launches:
        for a, size, warps in (*((*given, 4) for given in sizes), (x, 8192, 8)):
            kernels.tiles_and_tail[(1,)](a, x, size, FUNCTION=F, BLOCK=128, num_warps=warps)
    distinct = variants(launches, TARGETS["sm_90"])
    assert distinct == [launches[0], *launches[2:]]
    assert "square_plus_exp" in distinct[0].variant(TARGETS["sm_90"])


def test_debugging_is_compiled_in_where_it_was_asked_for(monkeypatch):
    """As Triton's launcher has it: `debug=` of the launch, or TRITON_DEBUG."""
    target, arguments = TARGETS["sm_90"], (kernels.full_tiles, meta(8192), meta(8192))
    debugs = [recorded(*arguments, FUNCTION=F, BLOCK=128, **options) for options in ({}, {"debug": True})]
    assert [launch.specialize(target).options.debug for launch in debugs] == [False, True]
    monkeypatch.setattr(triton.knobs.runtime, "debug", True)
    assert debugs[0].specialize(target).options.debug


def test_launching_is_restored():
    before = type(F).run
    with pytest.raises(ZeroDivisionError), record_launches():
        raise ZeroDivisionError
    assert type(F).run is before


def test_an_autotuned_kernel_is_refused_by_name():
    """It would time its configurations, which are several launches, and on no GPU an error of Triton's."""
    with pytest.raises(RuntimeError, match=r"^full_tiles is autotuned: launch full_tiles\.fn\[grid\]"):
        recorded(kernels.autotuned, meta(8192), meta(8192), FUNCTION=F, BLOCK=BLOCK)
    for kernel in (kernels.autotuned.fn, kernels.tuned_in_one_way):
        assert recorded(kernel, meta(8192), meta(8192), FUNCTION=F, BLOCK=BLOCK).name == "full_tiles"
