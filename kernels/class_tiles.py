"""Tiles of logits, [COLUMNS, ROWS] of classes and elements: loads and stores, passes over long rows, the target."""

import triton
import triton.language as tl

from vae_fast.kernels import tiling
from vae_fast.kernels.elementary import exp


@triton.jit
def own(at, stride, index, active, wrong):
    """The target's logit; NaN where the target is `wrong`, no class, and 0 where its element is not active."""
    value = tiling.upcast(tl.load(at + index * stride, mask=active & (index >= 0), other=0))
    return tl.where(wrong, float("nan"), value)


@triton.jit
def pass_over(
    at, stride, index, floor, active, classes, limit,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(The largest logit, the sum of the exponentials of all but the target's): each group has a maximum of its own.

    A group is of lanes that one thread has: what it reads at a time, or of many rows two classes.
    """
    GROUP: tl.constexpr = 128 // at.dtype.element_ty.primitive_bitwidth if ROWS == 1 else 2
    BEFORE: tl.constexpr = COLUMNS // GROUP if ROWS == 1 else 1
    BEHIND: tl.constexpr = COLUMNS * ROWS // GROUP // BEFORE
    if floor.dtype == tl.float64:
        top = tl.full((BEFORE, BEHIND), -1.7976931348623157e308, tl.float64)
    else:
        top = tl.full((BEFORE, BEHIND), -3.4028234663852886e38, tl.float32)
    total = top * 0.0
    start = 0
    while start < classes:
        k = lanes(start, COLUMNS, WIDE)
        x = load(at, stride, k, active, limit, True)
        x = at_target(x, k, index, float("-inf"), start, ROWS, COLUMNS)
        x = tl.reshape(x, (BEFORE, GROUP, BEHIND))
        higher = tl.maximum(top, tl.max(x, 1))
        total = total * exp(top - higher) + tl.sum(exp(x - higher[:, None, :]), 1)
        top = higher
        start += COLUMNS
    top = tl.reshape(top, (BEFORE * BEHIND // ROWS, ROWS))
    total = tl.reshape(total, (BEFORE * BEHIND // ROWS, ROWS))
    highest = tl.maximum(tl.max(top, 0), floor)
    return highest, tl.sum(total * exp(top - highest[None, :]), 0)


@triton.jit
def at_target(x, k, index, value, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """`x` with another value at the target, which of the tiles of one row is in one alone."""
    if ROWS == 1:
        only = tl.max(index, 0)
        if (start <= only) & (only < start + COLUMNS):
            x = tl.where(k == index[None, :], value, x)
    else:
        x = tl.where(k == index[None, :], value, x)
    return x


@triton.jit
def lanes(start, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """The classes of a tile that begins at class `start`."""
    k = start + tl.arange(0, COLUMNS)[:, None]
    if WIDE:
        k = k.to(tl.int64)
    return k


@triton.jit
def load(at, stride, k, rows, classes, MASKED: tl.constexpr):
    at = at[None, :] + k * stride
    if MASKED:
        x = tl.load(at, mask=rows[None, :] & (k < classes), other=float("-inf"))
    else:
        x = tl.load(at, mask=rows[None, :], other=0)
    return tiling.upcast(x)


@triton.jit
def store(out, stride, k, rows, classes, value, MASKED: tl.constexpr):
    inside = rows[None, :]
    if MASKED:
        inside = inside & (k < classes)
    tl.store(out[None, :] + k * stride, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gradient(k, index, e, rest, scale):
    """Softmax, and at the target less 1, by what the other classes have."""
    return tl.where(k == index[None, :], -rest[None, :], e) * scale[None, :]
