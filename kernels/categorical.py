"""The categorical likelihood: logits [B, ..., K] with the classes last, and the index of each element's class.

One kernel: forward, forward with gradient, backward. Rows of classes that fit in one tile are read once and kept in
registers; longer ones are read in a first pass for the largest logit and the sum of exponentials, and in a second one
for the gradient. With x the logits, m the largest, t the target and rest = sum over k != t of exp(x_k - m),

    nll = log(rest + exp(x_t - m)) - (x_t - m),   d nll / d x_k = softmax_k, and -rest / (rest + exp(x_t - m)) at t.

Without the target's own term in `rest`, a confident prediction loses nothing: softmax_t - 1 would cancel.

The elements may be contiguous instead of the classes, as a convolution's output is with its channels moved last: both
are fast, as are a few classes of any number (`packed_rows`), and more than MAX_CLASSES of any (`uneven_rows`). Where
16-byte accesses do not fit, instructions bound it: up to 52 a logit of 257 classes, and 100 a lane in chunks of few.
"""

import torch
import triton
import triton.language as tl

from vae_fast.kernels import class_tiles, packed_rows, reductions, targets, tiling, uneven_rows
from vae_fast.kernels.elementary import exp, log_of_normal, reciprocal
from vae_fast.kernels.launching import launch, replayed
from vae_fast.kernels.likelihoods import Issued

# A logarithm and a division an element are done by each thread that has a part of its row: the fewer, the better.
ELEMENTS_PER_THREAD = 32
TILE = 1024  # one warp
MAX_CLASSES = 16384  # lanes of the largest tile: one row of so many classes is read once; of float64, PASS
PASS = 4096  # lanes of a tile where rows are read in passes
NEIGHBOURS = 32  # elements side by side in a tile where they, and not the classes, are contiguous: 64 bytes or more

# Instructions on sm_90 (make audit), where 16-byte accesses fit: per logit, and per element in each thread of its row.
ISSUED = Issued(sum=12, gradient=18, both=19, each=13)
ISSUED_PASSES = Issued(sum=20, gradient=30, both=31, each=21)
ISSUED_ELEMENT = 70
ISSUED_PACKED = Issued(sum=14, gradient=24, both=27, each=13)  # per lane, of which a row has a power of two
ISSUED_PACKED_ROW = 50


@replayed
def forward(logits, target, ignore_index, reduction, wanted, weight=None):
    """The reduced nll of `target` and, where `wanted`, the gradient of the logits for an upstream gradient of 1.

    logits: [B, ..., K], any strides; target: integers [B, ...]; ignore_index: of elements that are left out, or None;
    weight: of each element's nll, expanded to the target's shape, bool or float, or None. Returns (loss, gradient or
    None). For N elements, reads NK logits and, but in packed rows, the targets' N again, N indices and weights, and
    writes NK of the gradient and one partial sum a program. Logits of elements that are ignored, or of weight 0, are
    read in packed rows alone. More classes than MAX_CLASSES are read a second time for the gradient, 3NK in all (but
    for the edges of `uneven_rows`). Two launches, between which "sample" writes and reads N losses; one for "none", and
    for "sample" of one element each.
    """
    dtype = tiling.accumulator(logits.dtype)
    loss = None
    if reduction == "none":
        loss = torch.empty_like(target, dtype=dtype)
    elif reduction == "sample":
        # Of one element each it is returned itself: a view that a Function returned could not be written to in place.
        shape = target.shape if target.numel() > len(target) else target.shape[:1]
        loss = torch.empty(shape, dtype=dtype, device=target.device)
    losses = None if loss is None else loss.view(target.shape)
    grad = torch.empty_like(logits) if wanted else None
    partials = _launch(logits, target, weight, losses, None, grad, ignore_index, reduction)
    if reduction == "none":
        return loss, grad
    if reduction == "sample":
        return _sum_samples(loss), grad
    out, divisor = partials.new_empty(()), reductions.divisor(reduction, target.shape)
    reductions.sum_partials(reductions.Sum(partials, out, 1, len(partials), (0, 1), divisor))
    return out, grad


@replayed
def backward(grad_loss, logits, target, ignore_index, reduction, weight=None):
    """The gradient of the logits, recomputed, in one launch: reads what `forward` does, and writes NK.

    grad_loss: of the loss's shape, any strides. The rest as in `forward`.
    """
    grad = torch.empty_like(logits)
    upstream = tiling.expand_upstream(grad_loss, target, reduction)
    _launch(logits, target, weight, None, upstream, grad, ignore_index, reduction)
    return grad


def _sum_samples(losses):
    """[B] of the elements' losses."""
    batch, count = len(losses), losses.numel() // len(losses)
    if count == 1:
        return losses
    out = losses.new_empty(batch)
    reductions.sum_partials(reductions.Sum(losses, out, batch, count, (count, 1)))
    return out


def _launch(logits, target, weight, loss, upstream, grad, ignore_index, reduction):
    """Launch the kernel; returns the partial sums, one a program, where neither `loss` nor `upstream` is given."""
    classes, weight = logits.shape[-1], targets.readable(weight)
    first, first_grad = (None if t is None else t.select(-1, 0) for t in (logits, grad))  # of each element
    view, operands = tiling.view([first, first_grad, target, weight, loss, upstream], by_sample=False)
    wide = view.wide or tiling.view([t for t in (logits, grad) if t is not None], by_sample=False)[0].wide
    inner = classes == 1 or logits.stride(-1) == 1
    double = logits.element_size() > 4
    packed = inner and packed_rows.fit(classes, double, view, operands[:2])
    step, edges = 1, False
    if inner and not packed:
        strides = (None if operand is None else operand[1] for operand in operands[:2])
        step, edges = uneven_rows.step(classes, logits.element_size(), strides, classes > MAX_CLASSES)
    aligned = step > 1 or classes % 16 == 0 if inner else view.columns % 16 == 0 and operands[0][1][1:] == (1,)
    count = target.numel()
    rows, columns, warps = packed_rows.tile(classes) if packed else tile(count, classes, inner, aligned, double)
    programs = tiling.ceil_div(count, rows)
    partials = None
    if loss is None and upstream is None:
        partials = reductions.workspace(logits, programs)
    strides = tuple(operands[2][1] if operand is None else operand[1] for operand in operands[2:])
    with tiling.on_device(logits):
        launch(
            _categorical, programs,
            _operand(logits, operands[0], packed), None if grad is None else _operand(grad, operands[1], packed),
            target, weight, loss, upstream, partials, strides, count, view.columns, view.shape, classes,
            0 if ignore_index is None else ignore_index, reductions.divisor(reduction, target.shape),
            IGNORES=ignore_index is not None, PASSES=columns < classes, PACKED=classes if packed else 0,
            MASKED=classes % columns != 0, STEP=step, EDGES=edges, FLAT=view.rows == 1, ROWS=rows, COLUMNS=columns,
            WIDE=wide, warps=warps,
        )  # fmt: skip
    return partials


def _operand(tensor, operand, packed):
    """(tensor, strides): of the batch, of the classes, and of the other dimensions from the innermost one out."""
    batch, *others = operand[1]
    if packed:
        return tensor, (0, 1, *(0 for _ in others))  # a run of memory
    return tensor, (batch, tensor.stride(-1) if tensor.shape[-1] > 1 else 1, *others)


def tile(count, classes, inner, aligned, double):
    """Rows (elements), columns (classes) and warps of a program.

    inner: whether the classes are contiguous; aligned: whether 16-byte accesses fit; double: whether it is float64.
    """
    columns, least = tiling.power_of_2(classes), 1 if inner else NEIGHBOURS
    least = min(least, tiling.power_of_2(count))
    if least * columns > (PASS if double else MAX_CLASSES):
        columns = PASS // least
        return least, columns, max(PASS // (32 * tiling.ELEMENTS_PER_THREAD), 1)
    rows = min(max(TILE // columns, least), tiling.power_of_2(count))
    most = ELEMENTS_PER_THREAD // 2 if double else ELEMENTS_PER_THREAD
    # Where wide accesses do not fit, a thread has a little of many short rows: registers end.
    elements = most if aligned and not double else min(max(columns // 4, 4), most)
    return rows, columns, max(rows * columns // (32 * elements), 1)


@triton.jit
def _categorical(
    logits, grad, target, weight, loss, upstream, partials, strides, count, inner_count, shape, classes, ignore_index,
    divisor,
    IGNORES: tl.constexpr, PASSES: tl.constexpr, PACKED: tl.constexpr, MASKED: tl.constexpr, STEP: tl.constexpr,
    EDGES: tl.constexpr, FLAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    if PACKED:
        classes = PACKED  # known to the compiler, so that lanes beyond it cost nothing
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    element = program * ROWS + tl.arange(0, ROWS)
    row, column = element * 0, element
    if not FLAT:
        row, column = element // inner_count, element % inner_count

    active = element < count
    index = tl.load(target + tiling.offset(row, column, shape, strides[0]), mask=active, other=0).to(tl.int64)
    valid = (index >= 0) & (index < classes)
    if IGNORES:
        active = active & (index != ignore_index)
    if weight is not None:
        weights = tl.load(weight + tiling.offset(row, column, shape, strides[1]), mask=element < count, other=0)
        weights = tiling.upcast(weights)
        active = active & (weights != 0)
    index = tl.where(valid, index, -1)
    if not WIDE:
        index = index.to(tl.int32)
    wrong = active & (index < 0)

    # What is not read is -inf or 0, and the target's logit 0, so that nothing of an element that is left out is NaN.
    # The logit of a target that is no class is NaN, and with it the nll and all of the gradient; in packed rows that
    # would cost registers, and they are set.
    offset = tiling.offset(row, column, shape, logits[1], 2)
    begin, limit = tiling.whole(offset, STEP), tiling.whole(classes, STEP)
    if not PACKED:
        own = class_tiles.own(logits[0] + offset, logits[1][1], index, active, wrong)
    if PASSES:
        place, floor = index, own  # the target within what is read in passes, and the largest logit beside that
        if EDGES:
            begin = tiling.whole(offset + STEP - 1, STEP)
            head = begin - offset
            size = tiling.whole(classes - head, STEP)
            k_edge, is_edge = uneven_rows.edges(head, size, classes, STEP)
            edge = tl.load((logits[0] + offset)[None, :] + k_edge, mask=is_edge & active[None, :], other=float("-inf"))
            edge = tl.where(k_edge == index[None, :], float("-inf"), tiling.upcast(edge))
            limit, place, floor = size[None, :], index - head, tl.maximum(own, tl.max(edge, 0))
        at = logits[0] + begin
        top, rest = class_tiles.pass_over(at, logits[1][1], place, floor, active, classes, limit, ROWS, COLUMNS, WIDE)
        if EDGES:
            edge = exp(edge - top[None, :])
            rest += tl.sum(edge, 0)
    else:
        k = class_tiles.lanes(0, COLUMNS, WIDE)
        if PACKED:
            x = packed_rows.load(logits[0], program * ROWS, count, PACKED, ROWS, COLUMNS)
            if IGNORES or weight is not None:
                x = tl.where(active[None, :], x, 0.0)
            if MASKED:
                x = tl.where(k < classes, x, float("-inf"))
            own = tl.sum(tl.where(k == index[None, :], x, 0.0), 0)
        else:
            x = class_tiles.load(logits[0] + begin, logits[1][1], k, active, limit, MASKED)
        if x.dtype == tl.float64:  # the other form takes local memory on sm_100
            top = tl.where(active, tl.max(x, 0), 0.0)
            e = exp(tl.where(k == index[None, :], float("-inf"), x - top[None, :]))
        else:
            x = tl.where(k == index[None, :], float("-inf"), x)
            top = tl.maximum(tl.max(x, 0), own)
            e = exp(x - top[None, :])
        rest = tl.sum(e, 0)
    below = own - top
    e_own = exp(below)
    total = rest + e_own
    inverse = reciprocal(total)

    if upstream is None:
        # As log1p(rest), with the rounding error of 1 + rest put back, where the target is the largest: e_own is 1.
        nll = log_of_normal(total) + (rest - (total - e_own)) * inverse - below
        if weight is not None:
            nll = nll * weights.to(nll.dtype)
        if PACKED:
            nll = tl.where(wrong, float("nan"), nll)
        nll = tl.where(active, nll, 0.0)
        if loss is not None:
            tl.store(loss + tiling.offset(row, column, shape, strides[2]), nll, mask=element < count)
        else:
            tl.store(partials + tl.program_id(0), tl.sum(nll, 0))

    if grad is not None:
        scale = inverse * (1.0 / tl.full((1,), divisor, rest.dtype))
        if upstream is not None:
            g = tl.load(upstream + tiling.offset(row, column, shape, strides[3]), mask=active, other=0)
            scale = tiling.upcast(g).to(rest.dtype) * scale
        if weight is not None:
            scale = scale * weights.to(scale.dtype)
        if PACKED:
            scale = tl.where(wrong, float("nan"), scale)
        scale = tl.where(active, scale, 0.0)
        if EDGES:
            value = class_tiles.gradient(k_edge, index, edge, rest, scale).to(grad[0].dtype.element_ty)
            tl.store((grad[0] + offset)[None, :] + k_edge, value, mask=is_edge & (element < count)[None, :])
        else:
            begin = tiling.whole(tiling.offset(row, column, shape, grad[1], 2), STEP)
        out = grad[0] + begin
        if PASSES:
            start = 0
            while start < classes:
                k = class_tiles.lanes(start, COLUMNS, WIDE)
                e = exp(class_tiles.load(at, logits[1][1], k, active, limit, True) - top[None, :])
                e = class_tiles.at_target(e, k, place, -rest[None, :], start, ROWS, COLUMNS)
                class_tiles.store(out, grad[1][1], k, element < count, limit, e * scale[None, :], True)
                start += COLUMNS
        else:
            value = class_tiles.gradient(k, index, e, rest, scale)
            if PACKED:
                packed_rows.store(grad[0], value, program * ROWS, count, PACKED, ROWS, COLUMNS)
            else:
                class_tiles.store(out, grad[1][1], k, element < count, limit, value, MASKED)
