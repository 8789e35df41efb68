"""Distances between neighbouring floats."""

import numpy as np
import torch


def to_numpy(value):
    """A tensor (any dtype or device) or array as a float64 array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    return np.asarray(value, dtype=np.float64)


def ulp(value, dtype):
    """The distance from |value| to the next larger number of a torch dtype; at most that below its largest number.

    >>> ulp(1.0, torch.bfloat16)
    0.0078125
    """
    info = torch.finfo(dtype)
    magnitude = np.clip(np.nan_to_num(np.abs(to_numpy(value)), nan=info.max), info.smallest_normal, info.max)
    _, exponent = np.frexp(magnitude)  # magnitude = fraction * 2^exponent with fraction in [1/2, 1)
    return np.ldexp(info.eps, exponent - 1)


def ulp_distance(a, b):
    """How many numbers of their dtype lie between two float16 or bfloat16 tensors, elementwise; -0 is 0."""
    if a.dtype != b.dtype or a.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"expected two tensors of one half-precision dtype, got {a.dtype} and {b.dtype}")
    return (_rank(a) - _rank(b)).abs()


def _rank(tensor):
    """Position on the line of all numbers of the dtype."""
    bits = tensor.detach().cpu().view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
