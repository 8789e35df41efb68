"""count_traffic: exact bytes, and the bad kernels that it must catch."""

from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.benchmarks import sample_kernels as kernels
from tests.support.environment import TRITON
from vae_fast.benchmarks import traffic as counting
from vae_fast.benchmarks.traffic import OutOfBounds, count_traffic

pytestmark = pytest.mark.interpreter_only


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool])
def test_counts_the_lanes_that_the_mask_lets_through(dtype):
    x, y = torch.zeros(1000, dtype=dtype), torch.empty(1000)
    with count_traffic() as traffic:
        kernels.tiles_and_tail[(4,)](x, y, 1000, FUNCTION=kernels.square_plus_exp, BLOCK=256)
    assert traffic.kernels == ["tiles_and_tail"]
    assert (traffic.launches, traffic.programs) == (1, 4)
    assert traffic.bytes == {
        ("tiles_and_tail", "x", "load"): 1000 * x.element_size(),
        ("tiles_and_tail", "y", "store"): 1000 * 4,
    }
    assert not traffic.overwrites
    assert not traffic.gaps
    torch.testing.assert_close(y, torch.ones(1000))


def test_what_two_programs_load_counts_twice():
    flag, x, y = torch.zeros(1), torch.zeros(512), torch.empty(512)
    with count_traffic() as traffic:
        kernels.early_return[(2,)](flag, x, y, FUNCTION=kernels.square_plus_exp, BLOCK=256)
    assert traffic.moved(arg="flag") == 2 * 4


def test_early_return_moves_the_flag_alone():
    flag, x, y = torch.ones(1), torch.zeros(512), torch.empty(512)
    with count_traffic() as traffic:
        kernels.early_return[(2,)](flag, x, y, FUNCTION=kernels.square_plus_exp, BLOCK=256)
    assert traffic.moved() == 2 * 4


def test_sums_over_launches_and_selects():
    x, y = torch.zeros(256), torch.empty(256)
    with count_traffic() as traffic:
        kernels.full_tiles[(2,)](x, y, FUNCTION=kernels.square_plus_exp, BLOCK=128)
        kernels.row_sums[(1,)](y, x, 256, 256, COLUMNS=256)
    assert traffic.kernels == ["full_tiles", "row_sums"]
    assert traffic.moved(kind="load") == 2 * 1024
    assert traffic.moved(kernel="row_sums") == 1024 + 4
    assert traffic.moved(kernel="row_sums", arg="sums", kind="store") == 4
    assert "row_sums.x: load 1024 bytes" in str(traffic)


def test_names_tensors_in_tuples_and_passes_none():
    x, out = torch.ones(100), torch.empty(100)
    with count_traffic() as traffic:
        kernels.add_all[(1,)]((x, None, (2.0, 1)), out, 100, BLOCK=128)
        kernels.add_all[(1,)](inputs=(x, x.clone(), (2.0, 1)), out=out, n=100, BLOCK=128)
    assert traffic.moved(arg="inputs[0]") == 800
    assert traffic.moved(arg="inputs[1]") == 400
    assert traffic.moved(arg="inputs") == 1200
    assert out.eq(5).all()


def test_halves_of_one_tensor_are_told_apart():
    both = torch.ones(8, 20)
    left, right = both.chunk(2, dim=1)  # their spans overlap, their elements do not
    sums = torch.empty(8)
    with count_traffic() as traffic:
        kernels.add_all[(1,)]((right[0], left[0], (1.0, 0)), torch.empty(10), 10, BLOCK=16)
        kernels.row_sums[(8,)](left, sums, 10, 20, COLUMNS=16)
    assert traffic.moved(arg="inputs[0]") == traffic.moved(arg="inputs[1]") == 40
    assert traffic.moved(kernel="row_sums", arg="x") == 320
    assert not traffic.gaps


def test_views_of_other_dtypes_in_one_tensor_are_told_apart():
    """As of a quantised row, which begins with its scale."""
    rows = torch.zeros(8, 4 + 32, dtype=torch.uint8)
    scales, data = rows[:, :4].view(torch.float32), rows[:, 4:]
    with count_traffic() as traffic:
        kernels.scaled_rows[(8,)](scales, data, torch.empty(8, 32), 9, 36, COLUMNS=32)
    assert traffic.moved(arg="scales") == 8 * 4
    assert traffic.moved(arg="data") == 8 * 32
    assert not traffic.gaps


@pytest.mark.parametrize(
    "view",
    [
        lambda halves: halves,
        lambda halves: halves.expand(3, 8, 10),  # once more the same elements
        lambda halves: halves.as_strided((8, 1, 10), (20, 5, 1)),  # a stride that is never taken
        lambda halves: halves.unflatten(0, (2, 4)),
    ],
    ids=["halves", "expanded", "of size 1", "of three dimensions"],
)
def test_lanes_between_the_elements_of_a_view_are_gaps(view):
    left = view(torch.ones(8, 20)[:, :10])
    with count_traffic() as traffic:
        kernels.row_sums[(7,)](left, torch.empty(8), 16, 20, COLUMNS=16)
    assert traffic.gaps == {("row_sums", "x", "load"): 7 * 6}


@pytest.mark.parametrize("step", [1, 2])
def test_windows_that_overlap_have_no_gaps(step):
    windows = torch.ones(9).unfold(0, 3, step)
    with count_traffic() as traffic:
        kernels.row_sums[(1,)](windows, torch.empty(1), 9, 9, COLUMNS=16)
    assert traffic.moved(arg="x") == 36
    assert not traffic.gaps


def test_expanded_and_permuted_views():
    expanded = torch.ones(1).expand(64)
    with count_traffic() as traffic:
        kernels.row_sums[(4,)](expanded, torch.empty(4), 1, 0, COLUMNS=1)
        kernels.row_sums[(4,)](torch.ones(16, 4).T, torch.empty(4), 1, 1, COLUMNS=1)
    assert traffic.moved(arg="x") == 2 * 4 * 4
    assert not traffic.gaps


def test_atomics_are_counted_apart():
    x, counts = torch.zeros(100, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)
    with count_traffic() as traffic:
        kernels.histogram_atomics[(1,)](x, counts, 100, BLOCK=128)
    assert traffic.moved(kind="atomic") == 400
    assert traffic.moved(kind="store") == 0
    assert not traffic.overwrites
    assert counts[0] == 100


def test_catches_a_store_past_the_end():
    memory = torch.full((256,), 7.0)
    with (
        pytest.raises(OutOfBounds, match=r"stores_past_the_end: 28 .* stores .* 0 bytes past the end of y"),
        count_traffic(),
    ):
        kernels.stores_past_the_end[(1,)](torch.ones(100), memory[:100], 100, BLOCK=128)
    assert memory.eq(7).all()  # raised before memory was touched


def test_catches_a_load_in_a_device_function():
    with (
        pytest.raises(OutOfBounds, match="1 unmasked lanes of loads .* 4 bytes before the start of x"),
        count_traffic(),
    ):
        kernels.loads_before_the_start[(1,)](torch.ones(101)[1:], torch.empty(64), BLOCK=64)


@pytest.mark.parametrize(("size", "block"), [(31, 16), (1, 1)])
def test_an_access_that_is_half_inside(size, block):
    halves = torch.zeros(33, dtype=torch.float16)[:size]
    with pytest.raises(OutOfBounds, match="1 unmasked lanes .* is 0 bytes past the end of x"), count_traffic():
        kernels.casts_pointers[(1,)](halves, torch.empty(32, dtype=torch.float16), BLOCK=block)


def test_a_tensor_without_elements_has_none_to_load():
    """Its address may be 0."""
    x, y = torch.empty(0), torch.empty(0)
    with pytest.raises(OutOfBounds, match="1 unmasked lanes of loads fall .*: there is none$"), count_traffic():
        kernels.full_tiles[(1,)](x, y, FUNCTION=kernels.square_plus_exp, BLOCK=1)


@pytest.mark.skipif(TRITON >= (3, 9), reason="triton 3.9 has tensor descriptors alone")
@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_block_pointers():
    x, y = torch.ones(100), torch.zeros(100)
    with count_traffic() as traffic:
        kernels.copies_by_block_pointers[(1,)](x, y, 100, BLOCK=128)
    assert traffic.bytes == {
        ("copies_by_block_pointers", "x", "load"): 400,
        ("copies_by_block_pointers", "y", "store"): 400,
    }
    assert torch.equal(x, y)


def test_tensors_of_descriptors():
    x, y = torch.ones(16, 4), torch.zeros(16, 4)
    source, target = (TensorDescriptor(t, [16, 4], [4, 1], [8, 4]) for t in (x, y))
    with count_traffic() as traffic:
        kernels.copies_by_descriptors[(1,)](source, target)
    assert traffic.bytes == {
        ("copies_by_descriptors", "source", "load"): 128,
        ("copies_by_descriptors", "target", "store"): 128,
    }
    assert torch.equal(y[8:], x[:8])


def test_bounds_can_be_left_unchecked():
    memory = torch.full((256,), 7.0)
    with count_traffic(bounds=False) as traffic:
        kernels.stores_past_the_end[(1,)](torch.ones(100), memory[:100], 100, BLOCK=128)
    assert traffic.moved(arg="y") == 400


def test_catches_an_address_stored_twice():
    with count_traffic() as traffic:
        for _ in range(2):
            kernels.programs_overlap[(3,)](torch.ones(100), torch.empty(100), 100, BLOCK=32)
    assert traffic.overwrites == {("programs_overlap", "y"): 2 * 2}


def test_storing_again_in_the_next_launch_is_no_overwrite():
    x, y = torch.zeros(128), torch.empty(128)
    with count_traffic() as traffic:
        for _ in range(2):
            kernels.full_tiles[(1,)](x, y, FUNCTION=kernels.square_plus_exp, BLOCK=128)
    assert not traffic.overwrites


def test_other_errors_and_the_interpreter_itself_are_left_alone():
    from triton.runtime import interpreter

    before = interpreter.GridExecutor.__call__
    with pytest.raises(Exception, match="no_such_attribute"), count_traffic():
        kernels.full_tiles[(1,)](torch.zeros(8), torch.zeros(8), FUNCTION=lambda x: x.no_such_attribute, BLOCK=8)
    assert interpreter.GridExecutor.__call__ is before


def test_compare_and_swap_and_programs_of_three_axes():
    with count_traffic() as traffic:
        kernels.locks[(1, 2, 3)](torch.zeros(1, dtype=torch.int32))
    assert traffic.programs == 6
    assert traffic.bytes == {("locks", "lock", "atomic"): 6 * 4}


def test_a_grid_that_is_a_function():
    x = torch.zeros(1000)
    with count_traffic() as traffic:
        kernels.tiles_and_tail[lambda arguments: (triton.cdiv(arguments["n"], arguments["BLOCK"]),)](
            x, x.clone(), 1000, FUNCTION=kernels.square_plus_exp, BLOCK=128
        )
    assert traffic.programs == 8
    assert "8 programs" in str(traffic)


def test_arguments_of_any_name():
    x = torch.ones(8)
    with count_traffic() as traffic:
        kernels.convolves[(1,)](executor=x, kernel=x.clone(), y=torch.empty(8), BLOCK=8)
    assert traffic.moved(arg="kernel") == 32


def test_a_compiled_kernel_is_refused():
    """It would run, on a GPU, and nothing of it be counted."""
    compiled = JITFunction(kernels.full_tiles.fn)
    x = torch.zeros(8)
    with pytest.raises(RuntimeError, match="full_tiles is compiled: set TRITON_INTERPRET=1"), count_traffic():
        compiled[(1,)](x, x, FUNCTION=kernels.square_plus_exp, BLOCK=8)


def test_an_unknown_kind_of_access_is_refused():
    with pytest.raises(ValueError, match="kind is 'loads': expected one of 'load', 'store', 'atomic'"):
        counting.Traffic().moved(kind="loads")


def test_an_argument_is_not_what_another_begins_with():
    bytes_moved = Counter({("k", "x", "load"): 4, ("k", "x[0]", "load"): 8, ("k", "xs", "load"): 16})
    assert counting.Traffic(bytes=bytes_moved).moved(arg="x") == 12


def overwrites(*stores):
    """Counted of one launch that stores to these (addresses, size)."""
    counter = counting._Counter(bounds=True)
    counter.kernel = "k"
    counter.stores["x"] = [(np.array(addresses, dtype=np.uint64), size) for addresses, size in stores]
    counter._close_launch()
    return counter.traffic.overwrites["k", "x"]


def test_overwrites_are_counted_to_the_byte_where_sizes_differ():
    assert overwrites(([0, 4, 8], 4)) == 0
    assert overwrites(([0, 4, 4], 4)) == 1
    assert overwrites(([0, 4], 4), ([6], 2)) == 2


def test_what_lies_in_a_view():
    def at(view, *offsets):
        return np.array([view.low + offset for offset in offsets], dtype=np.uint64)

    view, pairs = counting._View("x", torch.zeros(8)[::2]), counting._View("x", torch.zeros(4, 8)[:, :2])
    assert view.span(at(view, 0, 24, 26, 28), 4).tolist() == [True, True, False, False]
    assert view.elements(at(view, 0, 2, 4, 8, 24), 4).tolist() == [True, False, False, True, True]
    assert view.elements(at(view, 0, 3, 4, 24, 27, 28), 1).tolist() == [True, True, False, True, True, False]
    assert pairs.elements(at(pairs, 0, 4, 8, 32, 36), 4).tolist() == [True, True, False, True, True]
