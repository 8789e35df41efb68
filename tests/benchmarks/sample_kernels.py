"""Small kernels, good ones and deliberately bad ones, for the tests of the measuring tools."""

import triton
import triton.language as tl


@triton.jit
def square_plus_exp(x):
    return x * x + tl.exp(x)


@triton.jit
def full_tiles(x, y, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    """Elementwise, no mask: the size must be a multiple of BLOCK."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, FUNCTION(tl.load(x + at).to(tl.float32)))


@triton.jit
def tiles_and_tail(x, y, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    """The same for any size: a path for full tiles and one for the tail."""
    start = tl.program_id(0) * BLOCK
    at = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        tl.store(y + at, FUNCTION(tl.load(x + at).to(tl.float32)))
    else:
        tl.store(y + at, FUNCTION(tl.load(x + at, mask=at < n, other=0).to(tl.float32)), mask=at < n)


@triton.jit
def tiles_and_tail_around_shared_maths(x, y, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    """The same with two choices, and the maths between them."""
    start = tl.program_id(0) * BLOCK
    at = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:  # noqa: SIM108
        value = tl.load(x + at)
    else:
        value = tl.load(x + at, mask=at < n, other=0)
    value = FUNCTION(value.to(tl.float32))
    if start + BLOCK <= n:
        tl.store(y + at, value)
    else:
        tl.store(y + at, value, mask=at < n)


@triton.jit
def persistent(x, y, n, programs, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    """The same in a loop."""
    start = tl.program_id(0) * BLOCK
    while start < n:
        at = start + tl.arange(0, BLOCK)
        if start + BLOCK <= n:
            tl.store(y + at, FUNCTION(tl.load(x + at).to(tl.float32)))
        else:
            tl.store(y + at, FUNCTION(tl.load(x + at, mask=at < n, other=0).to(tl.float32)), mask=at < n)
        start += programs * BLOCK


@triton.jit
def early_return(flag, x, y, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    """Touches nothing where the flag is 1."""
    if tl.load(flag) != 1.0:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + at, FUNCTION(tl.load(x + at).to(tl.float32)))


@triton.jit
def row_sums(x, sums, columns, row_stride, COLUMNS: tl.constexpr):
    """One program a row, any row stride."""
    row, column = tl.program_id(0), tl.arange(0, COLUMNS)
    values = tl.load(x + row * row_stride + column, mask=column < columns, other=0)
    tl.store(sums + row, tl.sum(values, 0))


@triton.jit
def scaled_rows(scales, data, out, scales_stride, data_stride, COLUMNS: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, COLUMNS)
    numbers = tl.load(data + row * data_stride + at).to(tl.float32)
    tl.store(out + row * COLUMNS + at, tl.load(scales + row * scales_stride) * numbers)


@triton.jit
def convolves(executor, kernel, y, BLOCK: tl.constexpr):
    """Of arguments whose names are those of what launches it."""
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(executor + at) * tl.load(kernel + at))


@triton.jit
def add_all(inputs, out, n, BLOCK: tl.constexpr):
    """inputs: (pointer, pointer or None, (scale, shift))."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(inputs[0] + at, mask=at < n, other=0)
    if inputs[1] is not None:
        total += tl.load(inputs[1] + at, mask=at < n, other=0)
    tl.store(out + at, total * inputs[2][0] + inputs[2][1], mask=at < n)


@triton.jit
def histogram_atomics(x, counts, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(counts + tl.load(x + at, mask=at < n, other=0), 1, mask=at < n)


@triton.jit
def holds_its_whole_tile(x, y, BLOCK: tl.constexpr):
    """Bad with a large BLOCK and few warps: every value must be kept until the sum is known, so registers spill."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.store(y + at, value / tl.sum(value, 0))


@triton.jit
def cosine(x, y, BLOCK: tl.constexpr):
    """Bad: the slow path of cos for large angles keeps an array in local memory."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.cos(tl.load(x + at)))


@triton.jit
def stores_past_the_end(x, y, n, BLOCK: tl.constexpr):
    """Bad: the store has no mask."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0))


@triton.jit
def offset_by_device_function(pointer, at):
    return tl.load(pointer + at - 1)


@triton.jit
def loads_before_the_start(x, y, BLOCK: tl.constexpr):
    """Bad, inside a device function."""
    at = tl.arange(0, BLOCK)
    tl.store(y + at, offset_by_device_function(x, at))


@triton.jit
def programs_overlap(x, y, n, BLOCK: tl.constexpr):
    """Bad: neighbouring programs both store one element."""
    at = tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0), mask=at < n)


@triton.jit
def add_of_unequal_blocks(x, BLOCK: tl.constexpr):
    return x + tl.arange(0, BLOCK + BLOCK)


@triton.jit
def does_not_compile(x, y, BLOCK: tl.constexpr):
    """Bad, inside a device function."""
    at = tl.arange(0, BLOCK)
    tl.store(y + at, add_of_unequal_blocks(tl.load(x + at), BLOCK))


@triton.jit
def refuses_its_block(x, y, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK < 64, "BLOCK is 64 or more: expected fewer")


@triton.jit
def sum_in_a_loop(x, sums, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        total += tl.load(x + start + tl.arange(0, BLOCK))
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def sums_of_gathered_rows(table, index, out, n, columns, BLOCK: tl.constexpr):
    """An embedding bag: narrow loads in a loop that may have no round, and a wide store."""
    at = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(n):
        total += tl.load(table + tl.load(index + i) * columns + at).to(tl.float32)
    tl.store(out + at, total)


@triton.jit
def iterates(x, y, n, BLOCK: tl.constexpr):
    """A square root by Newton's method, in a loop without an access that may have no round."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    root = value
    for _ in range(n):
        root = 0.5 * (root + value / root)
    tl.store(y + at, root)


@triton.jit
def dot_in_a_loop(x, y, out, n, BLOCK: tl.constexpr):
    """Attention without its scale: sm_80 leaves such a loop by a call that does not return."""
    row, column = tl.arange(0, BLOCK)[:, None] * BLOCK, tl.arange(0, BLOCK)[None, :]
    total, most = tl.zeros((BLOCK, BLOCK), tl.float32), tl.full((BLOCK,), 0, tl.float32)
    for start in range(0, n, BLOCK):
        product = tl.dot(tl.load(x + row + column), tl.load(y + start * BLOCK + row + column))
        most = tl.maximum(most, tl.max(product, 1))
        total += tl.exp(product - most[:, None])
    tl.store(out + row + column, total)


@triton.jit
def divides_its_warps(x, y, out, n, BLOCK: tl.constexpr):
    a = tl.make_tensor_descriptor(x, [BLOCK, n], [n, 1], [BLOCK, 64])
    b = tl.make_tensor_descriptor(y, [BLOCK, n], [n, 1], [BLOCK, 64])
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in tl.range(0, n, 64, warp_specialize=True):
        total = tl.dot(a.load([0, start]), b.load([0, start]).T, total)
    tl.store(out + tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :], total)


@triton.jit
def divides(x, y, n, BLOCK: tl.constexpr):
    """Of int64, which has a subroutine for what does not fit into 32 bits."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at) // n)


@triton.jit
def copy_of_a_whole_tile(x, y, n, BLOCK: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [n, 64], [64, 1], [BLOCK, 64])
    target = tl.make_tensor_descriptor(y, [n, 64], [64, 1], [BLOCK, 64])
    row = tl.program_id(0) * BLOCK
    target.store([row, 0], source.load([row, 0]))


@triton.jit
def copies_by_descriptors(source, target):
    target.store([8, 0], source.load([0, 0]))


@triton.jit
def copies_by_block_pointers(x, y, n, BLOCK: tl.constexpr):
    source = tl.make_block_ptr(x, (n,), (1,), (0,), (BLOCK,), (0,))
    target = tl.make_block_ptr(y, (n,), (1,), (0,), (BLOCK,), (0,))
    tl.store(target, tl.load(source, boundary_check=(0,)), boundary_check=(0,))


autotuned = triton.autotune([triton.Config({}, num_warps=4), triton.Config({}, num_warps=8)], key=[])(full_tiles)
tuned_in_one_way = triton.autotune([triton.Config({}, num_warps=4)], key=[])(full_tiles)


tuned_by_rule = triton.autotune([triton.Config({}, num_warps=4), triton.Config({}, num_warps=8)], key=[])(
    triton.heuristics({"BLOCK": lambda arguments: 8})(full_tiles)
)


@triton.jit
def casts_pointers(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y.to(tl.pointer_type(tl.int32)) + at, tl.load(x.to(tl.pointer_type(tl.int32)) + at))


@triton.jit
def locks(lock):
    tl.atomic_cas(lock, 0, 1)


@triton.jit(noinline=True)
def not_inlined(x):
    return x * x + tl.exp(x)


@triton.jit
def calls_a_function(x, y, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at) * not_inlined(tl.load(x)))
