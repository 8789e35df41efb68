"""Reduces any likelihood in PyTorch: forward, forward with gradient, backward."""

import functools

import torch

from vae_fast.eager import likelihoods, reductions
from vae_fast.eager.blocks import blocks


def forward(params, target, likelihood, reduction, wanted):
    """As `vae_fast.kernels.reconstruction.forward`."""
    if reduction in ("none", "sample"):
        return _elementwise(params, target, likelihood, reduction), (None,) * len(params)
    row, dtype, grads = _row(likelihood), reductions.accumulator(params[0].dtype), _empty_grads(params, wanted)
    count, sums = reductions.divisor(reduction, target.shape), []
    for inputs, outs in _blocks(params, target, grads, dtype):
        total, derivatives = _total(row, inputs, _buffers(outs, dtype), any(wanted))
        sums.append(total)
        _write(outs, derivatives, 1 / max(count, 1))
    return reductions.finish(sums, reduction, target.shape), grads


def backward(grad_loss, params, target, likelihood, reduction, wanted):
    """As `vae_fast.kernels.reconstruction.backward`, for a scalar loss with its own gradient alone."""
    row, dtype, grads = _row(likelihood), reductions.accumulator(params[0].dtype), _empty_grads(params, wanted)
    upstream = reductions.spread(grad_loss, target, reduction)
    for (*inputs, g), outs in _blocks(params, target, grads, dtype, upstream):
        _write(outs, row.derivatives(inputs[:-1], inputs[-1], _buffers(outs, dtype)), g)
    return grads


def native(params, target, likelihood, reduction):
    """The loss by PyTorch's own op and autograd, or None where ours is faster or more exact."""
    row = _row(likelihood)
    if row.native is None or target.numel() > row.most * torch.get_num_threads() or reduction in ("none", "sample"):
        return None
    if target.dtype != torch.float32 or params[0].dtype != torch.float32:
        return None
    total = row.native(*params, target, reduction="sum")
    count = reductions.divisor(reduction, target.shape)
    return total if count == 1 else total / count


def scale_(grads, grad_loss):
    """Multiply the gradients made in forward by the upstream gradient, 0-d, in place."""
    if grad_loss.device.type == "cpu" and grad_loss == 1:  # elsewhere it would cost a synchronisation
        return
    for grad in grads:
        grad.mul_(grad_loss)


def _elementwise(params, target, likelihood, reduction):
    dtype = reductions.accumulator(params[0].dtype)
    nll = functools.reduce(torch.Tensor.add_, _row(likelihood).terms([p.to(dtype) for p in params], target.to(dtype)))
    if reduction == "none":
        return torch.empty_like(params[0], dtype=dtype).copy_(nll)
    return reductions.finish([reductions.partial(nll, reduction)], reduction, nll.shape)


def _row(likelihood):
    return getattr(likelihoods, likelihood)


def _total(row, inputs, buffers, differentiate):
    """The sum of a block's nll, and the derivatives, which may be in `buffers`."""
    *params, target = inputs
    if row.total is not None:
        return row.total(params, target, buffers)
    scratch = next((b for b in buffers if b is not None), None)
    scratch = torch.empty_like(target) if scratch is None else scratch
    total = sum(term.sum() for term in row.terms(params, target, scratch))
    return total, row.derivatives(params, target, buffers) if differentiate else (None,) * len(params)


def _empty_grads(params, wanted):
    return tuple(torch.empty_like(p) if want else None for p, want in zip(params, wanted, strict=True))


def _buffers(grads, dtype):
    """The gradients that can hold intermediate results."""
    return [grad if grad is not None and grad.dtype == dtype else None for grad in grads]


def _write(grads, derivatives, scale):
    """grads = derivatives * scale, where wanted; a derivative may be in its gradient already."""
    for grad, derivative in zip(grads, derivatives, strict=True):
        if grad is None:
            continue
        if derivative is not grad or not isinstance(scale, float) or scale != 1:
            torch.mul(derivative, scale, out=grad)


def _blocks(params, target, grads, dtype, *upstream):
    """Pairs of (params, target and upstream gradient in `dtype`, grads), block by block."""
    inputs = (*params, target, *upstream)
    for block in blocks((*inputs, *grads)):
        yield [t.to(dtype) for t in block[: len(inputs)]], block[len(inputs) :]
