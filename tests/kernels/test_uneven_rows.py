"""How rows are accessed of which Triton does not see that 16-byte accesses fit."""

import pytest
import torch

from vae_fast.kernels import tiling, uneven_rows


@pytest.mark.parametrize(
    ("classes", "size", "passes", "expected"),
    [
        (1024, 4, False, (1, False)),  # Triton sees it
        (1000, 4, False, (4, False)),
        (1000, 2, False, (8, False)),
        (100, 2, False, (4, False)),  # 8 bytes
        (250, 4, False, (2, False)),
        (250, 2, False, (1, False)),  # 4 bytes
        (257, 4, False, (1, False)),
        (32768, 2, True, (1, False)),
        (32776, 2, True, (8, False)),
        (32772, 2, True, (8, True)),  # rather than 8 bytes
        (50257, 4, True, (4, True)),
        (50257, 8, True, (1, False)),
    ],
)
def test_dense_rows(classes, size, passes, expected):
    for strides in ([(0, classes)], [(7 * classes, classes), None], [(0, classes), (0, classes)]):
        assert uneven_rows.step(classes, size, strides, passes) == expected


def test_the_strides_count_beside_the_classes():
    assert uneven_rows.step(1024, 4, [(0, 1028), (0, 1024)], False) == (4, False)
    assert uneven_rows.step(1024, 4, [(0, 1025), (0, 1024)], False) == (1, False)


def test_edges_are_those_of_both_tensors_or_of_none():
    assert uneven_rows.step(50257, 4, [(0, 50258), (0, 50258)], True) == (4, True)
    assert uneven_rows.step(50257, 4, [(0, 50258), (0, 50257)], True) == (1, False)
    assert uneven_rows.step(50258, 4, [(0, 50260), (0, 50258)], True) == (2, False)  # 8 bytes, without edges


def view_of(*tensors):
    return tiling.view(tensors, by_sample=True)


@pytest.mark.parametrize(
    ("columns", "dtype", "expected"),
    [
        (256, torch.float32, 1),  # Triton sees it
        (200, torch.float32, 8),
        (200, torch.bfloat16, 8),
        (20, torch.float32, 4),
        (20, torch.bfloat16, 4),  # 8 bytes
        (50, torch.float32, 2),
        (50, torch.bfloat16, 1),  # 4 bytes
        (31, torch.float64, 1),
    ],
)
def test_rows_of_samples(columns, dtype, expected):
    tensor = torch.empty(6, columns, dtype=dtype)
    view, operands = view_of(tensor, tensor)
    assert tiling.step(view, operands) == tiling.step(view, [None, operands[0]]) == expected
    packed = torch.empty(6, 2 * columns, dtype=dtype).chunk(2, 1)
    assert tiling.step(*view_of(*packed)) == expected


def test_every_row_begins_so():
    rows, wide = torch.empty(6, 20), torch.empty(6, 40)
    of_samples, of_features = torch.empty(6, 1).expand(6, 20), torch.empty(20).expand(6, 20)
    for other, expected in ((torch.empty(6, 21)[:, :20], 1), (of_samples, 1), (of_features, 4), (wide[:, 7:27], 4)):
        assert tiling.step(*view_of(rows, other)) == expected
    assert tiling.step(*view_of(rows, rows.byte())) == 4  # 8 bytes, or 16, of the largest numbers
    assert tiling.step(*view_of(rows, rows), apart=(120, 120)) == 4
    assert tiling.step(*view_of(rows, rows), apart=(120, 121)) == 1
    assert tiling.step(*tiling.view([rows, rows], by_sample=False)) == 1  # one row
    images = torch.empty(2, 4, 6, 20).to(memory_format=torch.channels_last)
    assert tiling.step(*view_of(images, torch.empty(2, 4, 6, 20))) == 1  # several dimensions
