"""Argument checks of the public functions: each error names the argument, what it was, and what is wanted.

None of them reads a tensor's values: on a GPU that would wait for the device.
"""

import math
import numbers
import sys
from collections.abc import Sequence

import torch

from vae_fast.eager.reductions import accumulator

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FLOAT_NAMES = "float32, bfloat16, float16 or float64"
REAL_NAMES = "float32, bfloat16, float16, float64, bool, uint8 or a signed integer dtype"
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LATENT_REDUCTIONS = ("none", "sample", "latent", "sum", "mean", "batchmean")
REDUCTIONS = ("none", "sample", "sum", "mean", "batchmean")
KLS = ("closed_form", "monte_carlo")
IWAE_REDUCTIONS = ("sample", "sum", "batchmean")
FREE_BITS_PER = ("sample", "latent")
LARGEST = torch.finfo(torch.float32).max


def is_tensor(name, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is {type(value).__name__}: expected a tensor")


def is_float(name, tensor, what="values"):
    is_tensor(name, tensor)
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} is {dtype_name(tensor.dtype)}: expected {FLOAT_NAMES} {what}")
    is_dense(name, tensor)


def is_real(name, tensor):
    is_tensor(name, tensor)
    if tensor.dtype not in FLOATS and tensor.dtype not in INTEGERS:
        raise TypeError(f"{name} is {dtype_name(tensor.dtype)}: expected {REAL_NAMES}")
    is_dense(name, tensor)


def is_dense(name, tensor):
    """A tensor whose memory a kernel could read."""
    if type(tensor).__name__ == "DTensor":  # to import it takes a second
        raise TypeError(f"{name} is a DTensor: expected a tensor of this process alone, such as its to_local()")
    is_strided(name, tensor)


def is_strided(name, tensor):
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}: expected a dense (strided) tensor")
    if tensor.is_nested:
        raise TypeError(f"{name} is a nested tensor: expected a dense one")


def has_batch(name, tensor):
    if tensor.dim() == 0:
        raise ValueError(f"{name} has shape []: expected [B, ...] with the batch in dimension 0")


def same_shape(name, tensor, other_name, other):
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}, {other_name} has {list(other.shape)}: they must be equal"
        )


def same_arithmetic(name, tensor, other_name, other):
    """Both in float64 or neither. All else is computed in float32: autocast makes a mean bfloat16, and not its std."""
    if accumulator(tensor.dtype) != accumulator(other.dtype):
        dtype, other_dtype = dtype_name(tensor.dtype), dtype_name(other.dtype)
        raise TypeError(f"{name} is {dtype}, {other_name} is {other_dtype}: expected float64 for both or for neither")


def same_device(name, tensor, other_name, other):
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, {other_name} is on {other.device}: they must be on one device")


def no_grad(name, tensor):
    if tensor is not None and tensor.requires_grad:
        raise ValueError(
            f"{name} requires a gradient, which is not made: expected one that does not, detached if none is needed"
        )


def matches(name, tensor, other_name, other, expands=False):
    """A float tensor of the other's arithmetic, device and shape; with `expands`, of any shape that expands to it."""
    is_float(name, tensor)
    _expands(name, tensor, other_name, other.shape) if expands else same_shape(name, tensor, other_name, other)
    same_arithmetic(name, tensor, other_name, other)
    same_device(name, tensor, other_name, other)


def posterior(mu, logvar):
    is_float("mu", mu)
    has_batch("mu", mu)
    matches("logvar", logvar, "mu", mu)


def moments(tensor, dim):
    """A tensor that splits in halves along `dim`; returns dim counted from the front."""
    is_float("moments", tensor)
    if tensor.dim() < 2:
        raise ValueError(
            f"moments has shape {list(tensor.shape)}: expected [B, ...] with mu and logvar along dim {dim!r}"
        )
    dim = integer("dim", dim)
    front = dim + tensor.dim() if dim < 0 else dim
    if not 1 <= front < tensor.dim():
        raise ValueError(
            f"dim is {dim}: expected a dimension of moments {list(tensor.shape)} other than the batch's, 0"
        )
    if tensor.shape[front] % 2:
        raise ValueError(
            f"moments has size {tensor.shape[front]} along dim {dim}: expected an even size, mu and then logvar"
        )
    return front


def prior(value, shape, like):
    """A tuple of two tensors that expand to the posterior's `shape`."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        what = f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
        raise TypeError(f"prior is {what}: expected a tuple (mu, logvar) of tensors")
    for name, tensor in zip(("prior mu", "prior logvar"), value, strict=True):
        is_float(name, tensor)
        same_arithmetic(name, tensor, "mu", like)
        same_device(name, tensor, "mu", like)
        _expands(name, tensor, "mu", shape)
    return value


def has_shape(tensor, shape):
    """Whether it has. The number of dimensions first, or torch.export would ask whether [C] and [B, C] begin alike."""
    return tensor.dim() == len(shape) and tensor.shape == shape


def _expands(name, tensor, other_name, shape):
    aligned = zip(reversed(tensor.shape), reversed(shape), strict=False)
    # Two comparisons, because torch.compile cannot trace `in (1, wanted)` for a symbolic size. In this order: of one
    # that the data decide, as in x[mask], it knows that it equals itself, but not whether it is 1.
    if tensor.dim() > len(shape) or any(size != wanted and size != 1 for size, wanted in aligned):
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}: expected one that expands to {list(shape)}, that of {other_name}"
        )


def clamp(value, dtype=torch.float64):
    """(low, high) as the arithmetic of a dtype holds them, or two Nones."""
    if value is None:
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(_is_number(v) for v in value):
        raise TypeError(f"logvar_clamp is {value!r}: expected a tuple (low, high) of numbers")
    try:
        low, high = map(float, value)
    except OverflowError:
        raise ValueError(f"logvar_clamp is {value!r}: expected numbers that a float can hold") from None
    if not low <= high:
        raise ValueError(f"logvar_clamp is {value!r}: expected low <= high")
    return held(low, dtype), held(high, dtype)


def choice(name, value, choices):
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(map(repr, choices))}")


def boolean(name, value):
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {type(value).__name__}: expected a bool")


def one_source(**sources):
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        *most, last = sources
        choices = f"{', '.join(most)} and {last}"
        raise ValueError(f"{' and '.join(given)} were given: expected at most one of {choices}")


def generator(value, name, like):
    if not isinstance(value, torch.Generator):
        raise TypeError(f"generator is {type(value).__name__}: expected torch.Generator")
    if value.device.type != like.device.type:
        raise ValueError(f"generator is on {value.device}, {name} is on {like.device}: they must be on one device")


def eps(tensor, shape, like, num_samples=None):
    is_float("eps", tensor)
    if num_samples is not None and tensor.shape != (num_samples, *shape):
        wanted = [num_samples, *shape]
        raise ValueError(f"eps has shape {list(tensor.shape)}: expected {wanted}, num_samples times mu's shape")
    if num_samples is None and tensor.shape != shape:
        raise ValueError(f"eps has shape {list(tensor.shape)}, mu has {list(shape)}: they must be equal")
    same_device("eps", tensor, "mu", like)
    no_grad("eps", tensor)


def is_nats(name, tensor):
    is_tensor(name, tensor)
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} is {dtype_name(tensor.dtype)}: expected float32 or float64 nats")
    is_strided(name, tensor)


def kl(tensor, target=None):
    """The KL of each sample, as many as the target has if it is given, or their mean."""
    is_nats("kl", tensor)
    batch = "B" if target is None else target.shape[0]
    if tensor.dim() > 1 or (tensor.dim() and target is not None and tensor.shape[0] != batch):
        raise ValueError(
            f'kl has shape {list(tensor.shape)}: expected [{batch}] (reduction="sample") or [] (reduction="batchmean")'
        )
    if target is not None:
        is_dense("kl", tensor)
        same_device("kl", tensor, "target", target)


def latent_kl(tensor):
    is_nats("kl", tensor)
    if not tensor.dim():
        raise ValueError('kl has shape []: expected [D, ...], one a latent (reduction="latent")')


def importance(name, tensor):
    """One number for each of K samples of each of a batch."""
    is_nats(name, tensor)
    if tensor.dim() != 2 or not tensor.shape[0]:
        raise ValueError(f"{name} has shape {list(tensor.shape)}: expected [K, B] with K of 1 or more")


def scalar(name, value, other_name, other):
    """(tensor or None, number) of a number or a 0-d tensor on another's device."""
    if not isinstance(value, torch.Tensor):
        return None, number(name, value, "a number or a 0-d tensor")
    is_float(name, value)
    if value.dim():
        raise ValueError(f"{name} has shape {list(value.shape)}: expected a number or a 0-d tensor")
    same_device(name, value, other_name, other)
    no_grad(name, value)
    return value, 0.0


def number(name, value, what="a number"):
    """A finite number >= 0, as a float."""
    made = _as_float(name, value, what)
    # Not isfinite: torch.compile cannot trace it for a number that varies.
    if not 0 <= made <= sys.float_info.max:
        raise ValueError(f"{name} is {value}: expected a finite number >= 0")
    return made


def positive(name, value):
    """A finite number > 0, as a float."""
    made = _as_float(name, value)
    if not 0 < made <= sys.float_info.max:
        raise ValueError(f"{name} is {value}: expected a finite number > 0")
    return made


def ratio(name, value):
    """A number in (0, 1], as a float."""
    made = _as_float(name, value)
    if not 0 < made <= 1:
        raise ValueError(f"{name} is {value}: expected a number in (0, 1]")
    return made


def held(number, dtype):
    """The number as the arithmetic of a dtype holds it: beyond float32's largest it is infinite there.

    Passed as it is, PyTorch would raise an error that names no argument, and a kernel would compute in float64.
    """
    if dtype == torch.float64 or -LARGEST <= number <= LARGEST:
        return number
    return math.copysign(math.inf, number)


def integer(name, value, what="an int"):
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"{name} is {type(value).__name__}: expected {what}")
    return int(value)


def count(name, value):
    """An int, 1 or more."""
    if integer(name, value) < 1:
        raise ValueError(f"{name} is {value}: expected 1 or more")
    return int(value)


def counts(name, value, *, may_be_empty=False):
    """A sequence of ints, each 1 or more, as a tuple."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} is {type(value).__name__}: expected a sequence of ints")
    if not value and not may_be_empty:
        raise ValueError(f"{name} is empty: expected one size or more")
    return tuple(count(f"{name}[{i}]", item) for i, item in enumerate(value))


def _as_float(name, value, what="a number"):
    if not _is_number(value):
        raise TypeError(f"{name} is {type(value).__name__}: expected {what}")
    try:
        return float(value)  # first: compared with NumPy's float32 the largest float would be infinite
    except OverflowError:
        return math.inf


def _is_number(value):
    return isinstance(value, (float, int, numbers.Real)) and not isinstance(value, bool)


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")
