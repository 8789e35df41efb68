"""The gradients of a likelihood's parameters, made block by block of the batch."""

import functools

import torch

from vae_fast.eager import targets
from vae_fast.eager.elementary import number


class Gradients:
    """Those `wanted`: in `dense` with a number for each element; of a shared parameter the sums of blocks are kept."""

    def __init__(self, params, wanted):
        self._params, shape = params, params[0].shape
        made = zip(params, wanted, strict=True)
        self.dense = tuple(torch.empty_like(p) if want and p.shape == shape else None for p, want in made)
        self._sums = tuple([] if want and p.shape != shape else None for p, want in zip(params, wanted, strict=True))

    def add(self, outs, derivatives, scale, weight):
        """Add a block's derivatives * scale, weighted. `outs`, its block of `dense`, may hold a derivative already."""
        for out, sums, param, derivative in zip(outs, self._sums, self._params, derivatives, strict=True):
            if out is not None:
                _write(out, derivative, scale, weight)
            elif sums is not None:
                sums.append(_sum(derivative, scale, weight, param))

    def finish(self):
        """One a parameter, in its shape and dtype; None where not wanted."""
        return tuple(
            dense if sums is None else torch.empty_like(param).copy_(functools.reduce(torch.add, sums))
            for dense, sums, param in zip(self.dense, self._sums, self._params, strict=True)
        )


def _write(out, derivative, scale, weight):
    if weight is not None:
        made = targets.weighted(derivative, weight, scale, out if out.dtype == derivative.dtype else None)
        if made is not out:
            out.copy_(made)
    elif not isinstance(scale, float) or scale != 1:
        torch.mul(derivative, number(scale, derivative.dtype) if isinstance(scale, float) else scale, out=out)
    elif derivative is not out:
        out.copy_(derivative)


def _sum(derivative, scale, weight, param):
    """Over the elements that share a number of `param`, in the derivative's dtype."""
    if weight is not None:
        derivative = targets.weighted(derivative, weight)
    if isinstance(scale, float):
        return derivative.sum_to_size(param.shape) * scale
    return (derivative * scale).sum_to_size(param.shape)
