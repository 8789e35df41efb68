"""Reduces any likelihood in PyTorch: forward, forward with gradient, backward."""

import torch

from vae_fast.eager import likelihoods, reductions


def forward(params, target, likelihood, reduction, wanted):
    """As `vae_fast.kernels.reconstruction.forward`."""
    row, values, x = _upcast(params, target, likelihood)
    nll = row.nll(values, x)
    if reduction == "none":
        loss = torch.empty_like(params[0], dtype=nll.dtype).copy_(nll)
    else:
        loss = reductions.reduce(nll, reduction)
    if not any(wanted):
        return loss, (None,) * len(params)
    count = reductions.divisor(reduction, target.shape)
    return loss, _gradients(params, row.derivatives(values, x), wanted, None if count == 1 else 1 / max(count, 1))


def backward(grad_loss, params, target, likelihood, reduction, wanted):
    """As `vae_fast.kernels.reconstruction.backward`, with the loss's own gradient for scalar losses too."""
    row, values, x = _upcast(params, target, likelihood)
    return _gradients(params, row.derivatives(values, x), wanted, reductions.spread(grad_loss, target, reduction))


def scale_(grads, upstream):
    """Multiply the gradients made in forward by the upstream gradient, 0-d, in place."""
    if upstream.device.type == "cpu" and upstream == 1:  # elsewhere the comparison would cost a synchronisation
        return
    for grad in grads:
        grad.mul_(upstream)


def _upcast(params, target, likelihood):
    dtype = reductions.accumulator(params[0].dtype)
    return getattr(likelihoods, likelihood), [p.to(dtype) for p in params], target.to(dtype)


def _gradients(params, derivatives, wanted, scale):
    """The wanted derivatives times `scale`, each in the dtype and memory format of its parameter."""
    return tuple(
        _like(derivative if scale is None else derivative.mul_(scale), param) if want else None
        for derivative, param, want in zip(derivatives, params, wanted, strict=True)
    )


def _like(value, param):
    result = value.to(param.dtype)
    if result.stride() == param.stride() and param.is_contiguous():
        return result
    return torch.empty_like(param).copy_(result)
