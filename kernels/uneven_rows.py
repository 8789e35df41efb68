"""Rows that are not a multiple of 16 classes long, one behind the other: how they are accessed 16 bytes at a time.

Of 1000 classes they begin where an access does, which Triton has to be told. Rows of 50,257, which are read in passes,
begin and end within one: their body is what lies between, and the edges before and behind it are a small tile.
"""

import math

import triton
import triton.language as tl

from vae_fast.kernels import tiling


def step(classes, element_size, strides, passes):
    """(The numbers of an access, whether rows have edges), for the strides of the tensors' rows, None for no tensor.

    1 where Triton sees by itself how rows lie, and where 8 bytes do not fit. Edges cost what they save in short rows.
    """
    full, known = 16 // element_size, [of_rows for of_rows in strides if of_rows is not None]
    numbers = (classes, *(stride for of_rows in known for stride in of_rows))
    if element_size > 4:
        return 1, False
    if passes and math.gcd(full, *numbers) < full and known[0] == known[-1]:
        return full, True
    return min(tiling.divisor(numbers, element_size), full), False


@triton.jit
def edges(head, size, classes, STEP: tl.constexpr):
    """(The classes before and behind bodies that begin at `head`, whether there is such a one), [2 * STEP, ROWS]."""
    lane = tl.arange(0, 2 * STEP)[:, None]
    is_before = lane < STEP
    k = tl.where(is_before, lane, (head + size)[None, :] + lane - STEP)
    return k, k < tl.where(is_before, head[None, :], classes)
