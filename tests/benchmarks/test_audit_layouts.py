"""In which layouts the audit of our kernels asks for wide accesses, and which narrow ones it excuses there."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

import triton.language as tl

from vae_fast.benchmarks import audit_table as table

ROWS = torch.zeros(4, 512)
SHARED_ROW, SHARED_NUMBER = torch.zeros(512).expand(4, 512), torch.zeros(4, 1).expand(4, 512)
LANES, THREADS = 2048, 128  # a thread takes 16 elements: 64 bytes of ROWS


@pytest.mark.parametrize(
    ("tensor", "strides", "aligned"),
    [
        (ROWS, (512, 1), True),
        (torch.zeros(4 * 512 + 1)[1:], (512, 1), False),  # the first address
        (ROWS, (520, 1), False),  # that of the other rows
        (ROWS, (1024, 1, 520), False),  # that of another dimension
        (ROWS, (16, 512), False),  # neighbours are apart
        (SHARED_NUMBER, (1, 0), True),  # read once a row, from anywhere
    ],
)
def test_where_16_bytes_can_be_read_at_once(tensor, strides, aligned):
    assert table._aligned(tensor, strides) == aligned


@pytest.mark.parametrize(
    ("dtypes", "per_thread", "wide"),
    [
        ([torch.float32], 4, True),
        ([torch.float32], 3, False),
        ([torch.float32, torch.bfloat16], 4, False),  # 8 bytes of the second
        ([torch.float32, torch.bfloat16], 8, True),
        ([], 16, False),  # the sums of partial sums
    ],
)
def test_a_thread_has_16_bytes_of_each_tensor(dtypes, per_thread, wide):
    assert table._allows_wide([(ROWS.to(dtype), (512, 1)) for dtype in dtypes], per_thread) == wide


@pytest.mark.parametrize(
    ("operands", "loads", "moved", "allowed"),
    [
        # a seed and a row's number: less than the 64 bytes of a tensor
        ([(ROWS, (512, 1))], {128: 4, 32: 2}, 4, 2),
        ([(ROWS, (512, 1))], {128: 4, 32: 2}, 0, 2),
        # as much as a tensor, but the wide ones account for both: 8 bytes an element
        ([(ROWS, (512, 1))] * 2, {128: 8, 32: 20}, 8, 20),
        ([(ROWS, (512, 1))] * 2, {128: 8, 32: 20}, 7.9, 0),
        ([(ROWS, (512, 1))] * 2, {32: 20}, 8, 0),  # by another direction's
        # a number a row is none of them, nor a row that has a layout of its own
        ([(ROWS, (512, 1)), (SHARED_NUMBER, (1, 0))], {128: 4, 32: 20}, 4, 20),
        ([(ROWS, (512, 1)), (SHARED_NUMBER, (1, 0))], {32: 16}, 0, 0),
        ([(ROWS, (512, 1)), (SHARED_ROW, (0, 1))], {32: 16}, 0, 16),
    ],
)
def test_narrow_loads_that_are_excused(operands, loads, moved, allowed):
    report = SimpleNamespace(threads=THREADS, loads=loads, stores={})
    assert table._scalars(report, operands, LANES, 128, moved) == allowed


def test_a_row_of_one_number_is_not_shared():
    assert not table._is_shared(torch.zeros(1, 512).expand(1, 512))
    assert table._is_shared(SHARED_ROW)
    assert not table._is_shared(torch.zeros(1, 512).as_strided((1, 512), (0, 1)))


def test_a_launch_that_finishes_several_sums_takes_the_elements_of_all():
    assert table.tile_size(SimpleNamespace(arguments={"TILES": ((2, 4), (1, 8)), "ROWS": 3})) == 16


def test_gradients_that_are_scaled_are_read_as_they_lie():
    ((tensor, strides),) = table._operands(SimpleNamespace(arguments={"grads": (ROWS,), "factors": (1.0, None)}))
    assert tensor is ROWS
    assert strides == (0, 1)  # one row: its address counts


@pytest.mark.compiled_only
def test_every_launch_of_a_call_is_audited():
    call = "reconstruction_loss, mse, batchmean, float32, rows: forward"
    assert [e.launch.name for e in table.recorded(True) if e.call == call] == ["_reconstruct", "_sum_partials"]


@pytest.mark.compiled_only
def test_the_path_without_masks_is_left_to_the_code():
    """A tile as long as its rows may be full: the compiler is not told the size."""
    launches = {entry.launch for entry in table.recorded(True) if entry.call.startswith("sample_kl, sample, float32, ")}
    told = {
        (
            launch.arguments["size"][1],
            launch.arguments["COLUMNS"],
            isinstance(launch.arguments["size"][1], tl.constexpr),
        )
        for launch in launches
    }
    assert (256, 256, False) in told
