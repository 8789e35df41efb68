"""Short rows that lie one behind the other, read and written as the run of memory that they are.

In a tile of classes and rows, one of 10 classes leaves 6 of 16 lanes idle, has no wide access, and is spread over
threads that each do all that is done once a row. Here a program takes its rows as neighbours in memory, of which there
are at most as many as lanes, and hands them over through shared memory to threads that have whole rows.
"""

import math

import triton
import triton.language as tl

from vae_fast.kernels import tiling

MOST = 64  # lanes of a row, which a thread holds, twice; of float64, half
THREADS = 128
TILE = 1024  # lanes of a program at least


def fit(classes, double, view, operands):
    """Whether rows of so many classes gain by it, and lie so: `operands` are of their first classes, or None."""
    dense = tuple(classes * math.prod(view.shape[:d]) for d in range(len(view.shape)))
    dense = (0 if view.rows == 1 else classes * view.columns, *dense)
    most = MOST // 2 if double else MOST
    return 1 < classes < most and classes % 16 != 0 and all(o is None or o[1] == dense for o in operands)


def tile(classes):
    """Rows, columns and warps of a program."""
    columns = tiling.power_of_2(classes)
    return max(THREADS, TILE // columns), columns, THREADS // 32


@triton.jit
def load(tensor, first, count, CLASSES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows first, first + 1, ... as [COLUMNS, ROWS]; what is beyond the classes, or the last row, is any number."""
    lane = tl.arange(0, ROWS * COLUMNS)
    at = tensor + first * CLASSES + lane
    if first + ROWS <= count:
        run = tl.load(at, mask=lane < ROWS * CLASSES, other=0)
    else:
        run = tl.load(at, mask=lane < (count - first) * CLASSES, other=0)
    place = tl.arange(0, COLUMNS)[:, None] + tl.arange(0, ROWS)[None, :] * CLASSES
    run = tl.gather(tiling.upcast(run), tl.reshape(place, (COLUMNS * ROWS,)), 0)
    return tl.reshape(run, (COLUMNS, ROWS))


@triton.jit
def store(tensor, value, first, count, CLASSES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store [COLUMNS, ROWS] where `load` has it from."""
    lane = tl.arange(0, ROWS * COLUMNS)
    place = lane * ROWS - lane // CLASSES * (CLASSES * ROWS - 1)  # class lane % CLASSES of row lane // CLASSES
    run = tl.gather(tl.reshape(value, (COLUMNS * ROWS,)), place, 0).to(tensor.dtype.element_ty)
    at = tensor + first * CLASSES + lane
    if first + ROWS <= count:
        tl.store(at, run, mask=lane < ROWS * CLASSES)
    else:
        tl.store(at, run, mask=lane < (count - first) * CLASSES)
