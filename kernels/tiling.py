"""How tensors are seen as rows x columns: index maps, tile sizes, grids and the device guard.

Rows are samples (dimension 0) and columns are the elements of one sample, in the order of the output's memory.
Dimensions that are contiguous in every tensor of a launch are merged, so that almost every layout ends with one column
dimension. Where a launch needs no sum per sample and everything merges, the whole tensor is a single row.
"""

import contextlib
import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

# A thread owns 16 elements: four 16-byte accesses of float32, two of bfloat16. Fewer leave the bodies of the noise and
# the sums without independent work to hide their latency, more cost occupancy: `python -m vae_fast.benchmarks.sweep`.
ELEMENTS_PER_THREAD = 16
FLAT_TILE = 4096  # one row: the whole tensor
ROW_TILE = 2048  # several rows: samples of up to 2048 elements share a program
MAX_COLUMNS = 4096  # longest sample that one program takes whole; a longer one is split and summed in a second launch
LATENT_ROWS = 32  # a sum over samples: enough rows, or all, for its partial sums to stay at 1/32 of the input,
LATENT_COLUMNS = 64  # and whole cache lines of each: where tiles are smaller they have fewer rows

# Instructions per element on sm_90 that a layout adds to a kernel's own number `ISSUED`, for `make audit`. Numbers of
# this kind bound what was measured of the worst pair of options from above; most are within a tenth of what each issues
# by itself. They hold in layouts that allow 16-byte accesses.
ISSUED = {
    "rows": 4,  # several rows, or a sum for each column
    "dimension": 8,  # each column dimension beyond the first: a division, and half as many elements a thread
    "half": 0.7,  # each tensor of 16 bits: a conversion
    "mixed": 1.5,  # tensors of several widths: more addresses for the wider ones
    "wide": 0.8,  # 64-bit offsets
}

# The last tile's row and column numbers overhang the tensor and must not wrap, so 32-bit ones stop short of 2^31.
MAX_INT32_EXTENT = 2**31 - 2 * FLAT_TILE


def power_of_2(n):
    """The least power of two that is not below n >= 1. (Triton's own costs a microsecond a call on the host.)"""
    return 1 << (n - 1).bit_length()


def ceil_div(a, b):
    return -(-a // b)


class View(NamedTuple):
    """Tensors of one shape as rows x columns; `shape` and `strides[i][1:]` run from the innermost dimension out."""

    rows: int
    columns: int
    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    wide: bool


class Tiles(NamedTuple):
    rows: int
    columns: int
    row_blocks: int
    column_blocks: int
    portion: int = 1

    @property
    def programs(self):
        return self.row_blocks * self.column_blocks

    @property
    def axes(self):
        """Where the grid runs; in one direction a program finds its tile without a division."""
        if self.row_blocks == 1:
            return "columns"
        return "rows" if self.column_blocks == 1 else "both"

    def warps(self, view):
        """A thread has fewer elements where each has an address of its own or a heavy formula: registers end."""
        apart = len(view.shape) > 1 or any(strides[1] > 1 for strides in view.strides)
        elements = ELEMENTS_PER_THREAD // max(2 if apart else 1, self.portion)
        return max(self.rows * self.columns // (32 * elements), 1)


def view(tensors, by_sample):
    """The joint view of `tensors` (None is passed through) and, for each, its operand (tensor, strides).

    The first tensor decides the order of the columns. `by_sample` keeps one row a sample.
    """
    present = [t for t in tensors if t is not None]
    joint = _merge(tuple(present[0].shape), tuple(t.stride() for t in present), by_sample)
    strides = iter(joint.strides)
    return joint, [None if t is None else (t, next(strides)) for t in tensors]


@lru_cache(maxsize=4096)
def _merge(shape, strides, by_sample):
    batch = 0
    order = sorted((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: -strides[0][d])
    if not by_sample:
        dims = _merge_dims(order, shape, strides)
        if len(dims) <= 1:
            size, inner = dims[0] if dims else (1, tuple(1 for _ in strides))
            return View(1, size, (size,), tuple((0, s) for s in inner), _is_wide(shape, strides))
    dims = _merge_dims([d for d in order if d != batch], shape, strides) or [(1, tuple(1 for _ in strides))]
    columns = math.prod(size for size, _ in dims)
    per_tensor = tuple((s[batch], *(inner[k] for _, inner in dims)) for k, s in enumerate(strides))
    return View(shape[batch], columns, tuple(size for size, _ in dims), per_tensor, _is_wide(shape, strides))


def _merge_dims(order, shape, strides):
    """Merge dimensions (outermost first in `order`) that are contiguous in every tensor; returns innermost first."""
    merged = []
    for d in reversed(order):
        inner = tuple(s[d] for s in strides)
        if merged:
            size, below = merged[-1]
            if all(outer == stride * size for outer, stride in zip(inner, below, strict=True)):
                merged[-1] = (size * shape[d], below)
                continue
        merged.append((shape[d], inner))
    return merged


def _is_wide(shape, strides):
    """Whether an offset in elements, or a row or column number with its tile's overhang, needs 64 bits."""
    reach = max(sum((size - 1) * stride for size, stride in zip(shape, s, strict=True)) for s in strides)
    return max(math.prod(shape), reach) > MAX_INT32_EXTENT


def tiles(joint, over_samples=False, portion=1, within=MAX_COLUMNS):
    """The tile of a program and how many there are.

    over_samples: for sums along dimension 0. portion: where registers are short, what the elements of a tile, of the
    longest sample taken whole and of a thread are divided by. within: the most columns of a tile that has rows.
    """
    most = MAX_COLUMNS // portion
    row_tile = ROW_TILE // max(portion // 2, 1)
    if over_samples:
        rows = min(LATENT_ROWS, row_tile // LATENT_COLUMNS, power_of_2(joint.rows))
        columns = min(power_of_2(joint.columns), row_tile // rows)
    elif joint.rows == 1:
        rows, columns = 1, min(power_of_2(joint.columns), FLAT_TILE // portion)
    else:
        columns = power_of_2(joint.columns)
        columns = min(columns if columns <= most else row_tile, within)
        rows = min(max(row_tile // columns, 1), power_of_2(joint.rows))
    return Tiles(rows, columns, ceil_div(joint.rows, rows), ceil_div(joint.columns, columns), portion)


def expanded(tensors, shape):
    """The tensors, some None, seen in one shape without a copy."""
    return [t if t is None or t.shape == shape else t.expand(shape) for t in tensors]


def expand_upstream(grad, like, reduction):
    """The upstream gradient of a loss of `like`, seen in its shape without a copy."""
    if reduction == "sample":
        grad = grad.reshape(-1, *(1 for _ in like.shape[1:]))
    return grad.expand(like.shape)


def spread(operand):
    """The reduction whose upstream gradient spreads over the tensor as this operand does (see `load_spread`)."""
    if operand is None:
        return None
    row, *columns = operand[1]
    if any(columns):
        return "none" if row else "latent"
    return "sample" if row else "sum"


def dense_like(tensor):
    """Has the strides of `empty_like(tensor)`: noise depends on an element's position there, whatever a chunk's are."""
    return tensor if tensor.is_contiguous() else torch.empty_like(tensor, device="meta")


def accumulator(dtype):
    """Arithmetic and losses are float32, float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def step(view, operands, apart=()):
    """The `divisor` of the rows' strides and length; 1 where there is one row, or rows are not each a run of memory.

    operands: those that are accessed with it, some None. apart: what lies between samples of several.
    """
    operands = [operand for operand in operands if operand is not None]
    if len(view.shape) > 1 or view.rows == 1 or any(strides[1] > 1 for _, strides in operands):
        return 1
    numbers = (view.columns, *(strides[0] for _, strides in operands), *apart)
    return divisor(numbers, max(tensor.element_size() for tensor, _ in operands))


def divisor(numbers, element_size):
    """What divides them all, up to 16; 1 if that is too few for 8 bytes, or 16, which Triton sees by itself."""
    common = math.gcd(16, *numbers)
    return common if common < 16 and common * element_size >= 8 else 1


def on_device(tensor):
    """Launch on the tensor's own device: Triton launches on the current one, whatever the pointers say."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


@triton.jit
def tile(columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr, WIDE: tl.constexpr):
    """This program's first row and first column. Rows advance slowest."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    if AXES == "columns":
        return program * 0, program * COLUMNS
    elif AXES == "rows":
        return program * ROWS, program * 0
    else:
        blocks = tl.cdiv(columns, COLUMNS)
        return (program // blocks) * ROWS, (program % blocks) * COLUMNS


@triton.jit
def whole(number, STEP: tl.constexpr):
    """The multiple of `STEP` up to `number` >= 0, known as one to the compiler, which loses a hint of it."""
    if STEP > 1:
        number = number // STEP * STEP
    return number


@triton.jit
def offset(row, column, shape, strides, FIRST: tl.constexpr = 1, STEP: tl.constexpr = 1):
    """Offset in elements of [row, column] in a tensor with these strides (row first, from FIRST on innermost out).

    STEP: what divides the offsets of rows (see `step`).
    """
    at = whole(row * strides[0], STEP)
    for d in tl.static_range(len(shape)):
        if d + 1 < len(shape):
            at = at + (column % shape[d]) * strides[d + FIRST]
            column = column // shape[d]
        else:
            at = at + column * strides[d + FIRST]
    return at


@triton.jit
def load_spread(operand, row, column, size, shape, REDUCTION: tl.constexpr, EDGE: tl.constexpr, STEP: tl.constexpr = 1):
    """Numbers that spread over a tile, each read once: elementwise, a sample's, a latent's, or one for all.

    As the upstream gradient of a loss with this reduction does.
    """
    if REDUCTION != "none" and REDUCTION != "sample":
        row = tl.zeros((1, 1), tl.int32)
    if REDUCTION != "none" and REDUCTION != "latent":
        column = tl.zeros((1, 1), tl.int32)
    inside = None
    if EDGE:
        inside = (row < size[0]) & (column < whole(size[1], STEP))
    if REDUCTION == "none":
        return load(operand, row, column, shape, inside, STEP)
    else:
        return load(operand, row, column, shape, inside)


@triton.jit
def load_each(
    operands, row, column, first_column, size, shape, inside,
    SPREADS: tl.constexpr, EDGE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tuple of the operands' values; those that are shared are loaded once, and broadcast where they are used.

    SPREADS: as `load_spread` takes it, or "tile" for an operand of which the tile has one number.
    """
    values = ()
    for k in tl.static_range(len(operands)):
        value = _load_one(operands[k], row, column, first_column, size, shape, inside, SPREADS, k, EDGE, STEP)
        values = values + (value,)
    return values


@triton.jit
def _load_one(
    operand, row, column, first_column, size, shape, inside,
    SPREADS: tl.constexpr, K: tl.constexpr, EDGE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    SPREAD: tl.constexpr = SPREADS[K]  # Triton 3.6 passes an element of a tuple on as no constexpr
    if SPREAD == "none":
        return load(operand, row, column, shape, inside, STEP)
    elif SPREAD == "tile":
        first = tl.zeros((1, 1), tl.int32)
        return load(operand, first, first + first_column, shape, None)
    else:
        return load_spread(operand, row, column, size, shape, SPREAD, EDGE)


@triton.jit
def load(operand, row, column, shape, inside, STEP: tl.constexpr = 1):
    """Values at [row, column] as float32 (float64 and integers stay); 0 outside."""
    at = operand[0] + offset(row, column, shape, operand[1], 1, STEP)
    if inside is None:
        value = tl.load(at)
    else:
        value = tl.load(at, mask=inside, other=0)
    return upcast(value)


@triton.jit
def store(operand, row, column, shape, inside, value, STEP: tl.constexpr = 1):
    """Store `value` at [row, column] in the tensor's own dtype."""
    at = operand[0] + offset(row, column, shape, operand[1], 1, STEP)
    tl.store(at, value.to(operand[0].dtype.element_ty), mask=inside)


@triton.jit
def upcast(value):
    if value.dtype == tl.float64 or value.dtype.is_int():
        return value
    else:
        return value.to(tl.float32)
