"""How rows of classes are accessed that do not begin where Triton sees a 16-byte access begin."""

import pytest

from vae_fast.kernels import uneven_rows


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
