"""Accurate elementary functions that PyTorch lacks."""

import functools
import math

import torch
from torch.compiler import is_compiling
from torch.utils._python_dispatch import _disable_current_modes

LOG2_E = math.log2(math.e)  # torch.exp2 takes a third of torch.exp's time on some CPUs
ROW = 256  # numbers whose squares float32 adds up one after the other, as many at a time as a vector holds: 4 on ARM
FACTORS = 32  # numbers in [1/2, 2] with one logarithm: their product is far from underflow and overflow


def number(value, dtype, device="cpu", stream=None):
    """A number as a tensor: PyTorch takes two microseconds to wrap one, and one to convert a tensor's dtype.

    stream: of a GPU, on which the tensor is filled, and must be read. A compiler, which traces a backward pass, has it
    filled anew: it cannot look into the cache, and would break its graph there.
    """
    if is_compiling():
        return torch.full((), value, dtype=dtype, device=device)
    return _filled(value, dtype, device, stream)


@functools.lru_cache(maxsize=256)
def _filled(value, dtype, device, stream):
    # What is first computed in inference_mode or within torch.func, or imported in a FakeTensorMode, is of use outside.
    with torch.inference_mode(False), _disable_current_modes(), torch._C._DisableFuncTorch():
        return torch.full((), value, dtype=dtype, device=device)


def _constant(value):
    return {dtype: _filled(value, dtype, "cpu", None) for dtype in (torch.float32, torch.float64)}


_LOG2_E, _MINUS_LOG2_E, _HALF_LOG2_E = _constant(LOG2_E), _constant(-LOG2_E), _constant(LOG2_E / 2)
ONE, HALF, TWO, MINUS_ONE = map(_constant, (1.0, 0.5, 2.0, -1.0))


def as_scalar(constant):
    """A constant, which comes expanded, as 0-d: what is computed of it is computed once, and not for every element."""
    return constant.as_strided((), ())


def cast(tensor, dtype):
    """In `dtype`: PyTorch takes a microsecond to find nothing to do, and between blocks, out of the cache, five."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def is_compiling_calls():
    """Whether torch.compile traces, and not torch.export, to which every number is a constant.

    (In torch.compile of torch 2.11 torch.compiler.is_exporting() is True.)
    """
    return is_compiling() and not torch.compiler._is_exporting_flag


def is_at_hand(tensor):
    """Whether to ask for a tensor's number costs little: a GPU would be waited for, and a compiler break its graph."""
    return tensor.is_cpu and not is_compiling()


def exp(x, out=None):
    """exp(x), off by 6e-8 of the exponent in float32, in `out` or a new tensor."""
    return torch.mul(x, _LOG2_E[x.dtype], out=out).exp2_()


def exp_minus(x, out=None):
    """exp(-x), as `exp`."""
    return torch.mul(x, _MINUS_LOG2_E[x.dtype], out=out).exp2_()


def exp_of_half(x, out=None):
    """exp(x / 2), as `exp`."""
    return torch.mul(x, _HALF_LOG2_E[x.dtype], out=out).exp2_()


def expm1_minus_x(x, expm1=None):
    """(exp(x) - 1, exp(x) - 1 - x without cancellation near 0) in new tensors, or the first in `expm1`.

    Single precision takes the differences in float64; float64 sums a Taylor series below |x| = 1.
    """
    if x.dtype != torch.float64:
        wide = x.double()
        difference = torch.mul(wide, _LOG2_E[torch.float64]).exp2_().sub_(ONE[torch.float64])
        expm1 = difference.to(x.dtype) if expm1 is None else expm1.copy_(difference)
        return expm1, difference.sub_(wide).to(x.dtype)
    expm1 = torch.expm1(x, out=expm1)
    series = torch.ones_like(x)
    for k in range(20, 2, -1):  # 1/20! is below float64's rounding
        series.mul_(x).div_(k).add_(1)
    return expm1, torch.where(x.abs() < 1, series.mul_(x).mul_(x).div_(2), expm1 - x)


def varying(number, dtype, device):
    """A number of which a compiled call may be given another each time: under torch.compile a 0-d tensor.

    It makes some ops anew for each number, and outside autograd the cache of torch 2.13's Inductor may then hand out
    the code of another one (torch.where(x < number, number, x)). A product is made once for all of them.
    """
    if isinstance(number, torch.Tensor) or not is_compiling_calls():
        return number
    return torch.ones((), dtype=dtype, device=device) * number


def clamp(value, low, high=None):
    """`value` within the bounds, with the gradient 1 at them, where torch.clamp from 2.14 on has 0, or 1/2."""
    low = varying(low, value.dtype, value.device)
    bounded = torch.where(value < low, low, value)
    if high is None:
        return bounded
    high = varying(high, value.dtype, value.device)
    return torch.where(bounded > high, high, bounded)


def sign(x):
    """-1, 0 or 1; NaN stays NaN, and an infinite one becomes it."""
    return torch.sign(x).add_(x, alpha=0)


def log_ratio(a, b):
    """log(a / b) for a, b > 0; where they are close their difference is exact, and no digit of it is lost."""
    difference = (a - b) / b
    return torch.where(difference.abs() < 0.5, torch.log1p(difference), torch.log(a / b))


def select(mask, a, b):
    """torch.where of two tensors of one dtype, float32 or float64, whose shapes together are as large as the mask's.

    On a CPU the branches of torch.where on a random mask cost six times this.
    """
    if not a.is_cpu:
        return torch.where(mask, a, b)
    integer = torch.int64 if a.dtype == torch.float64 else torch.int32
    bits, b = mask.to(integer).neg_(), b.view(integer)
    return a.view(integer).bitwise_xor(b).bitwise_and_(bits).bitwise_xor_(b).view(a.dtype)


def sum_of_logs(values):
    """The sum of the logarithms of a dense tensor of numbers in [1/2, 2]."""
    rows, rest = _matrix(values, FACTORS, values.numel() // FACTORS)
    total = rows.prod(0).log_().sum()
    return total if rest is None else total.add_(rest.log().sum())


def sum_of_squares(values):
    """The sum of the squares of a dense float32 tensor: the norms of rows read it once, and copy nothing."""
    rows, rest = _matrix(values, values.numel() // ROW, ROW)
    total = torch.linalg.vector_norm(rows, dim=1).square_().sum()
    return total if rest is None else total.add_(rest.square().sum())


def _matrix(values, rows, columns):
    """The first rows * columns numbers of a dense tensor [rows, columns], and the rest; None where there is none."""
    rest = values.numel() - rows * columns
    matrix = values.as_strided((rows, columns), (columns, 1))
    return matrix, values.as_strided((rest,), (1,), values.storage_offset() + rows * columns) if rest else None
