"""Reduces any likelihood in PyTorch: forward, forward with gradient, backward."""

import functools

import torch

from vae_fast.eager import likelihoods, reductions

# Elements of a block for each thread. The passes over a block find in the core's cache what the last one wrote there;
# over whole tensors each would go to main memory, which takes 2 to 5 times as long from 512 x 784 up.
BLOCK = 131072


def forward(params, target, likelihood, reduction, wanted):
    """As `vae_fast.kernels.reconstruction.forward`."""
    if reduction in ("none", "sample"):
        return _elementwise(params, target, likelihood, reduction), (None,) * len(params)
    row, dtype = getattr(likelihoods, likelihood), reductions.accumulator(params[0].dtype)
    count = reductions.divisor(reduction, target.shape)
    grads, sums = _empty_grads(params, wanted), []
    for (*values, x), outs in _blocks((*params, target), grads):
        inputs = _upcast(values, x, dtype)
        buffers = _buffers(outs, dtype)
        scratch = next((b for b in buffers if b is not None), None)
        scratch = torch.empty_like(inputs[1]) if scratch is None else scratch
        sums += [term.sum() for term in row.terms(*inputs, scratch)]
        if any(wanted):
            _write(outs, row.derivatives(*inputs, buffers), 1 / max(count, 1))
    total = sum(sums[1:], sums[0])
    return total if count == 1 else total / count, grads


def backward(grad_loss, params, target, likelihood, reduction, wanted):
    """As `vae_fast.kernels.reconstruction.backward`, for a scalar loss with its own gradient alone."""
    row, dtype = getattr(likelihoods, likelihood), reductions.accumulator(params[0].dtype)
    grads = _empty_grads(params, wanted)
    upstream = reductions.spread(grad_loss, target, reduction)
    for (*values, x, g), outs in _blocks((*params, target, upstream), grads):
        _write(outs, row.derivatives(*_upcast(values, x, dtype), _buffers(outs, dtype)), g)
    return grads


def scale_(grads, grad_loss):
    """Multiply the gradients made in forward by the upstream gradient, 0-d, in place."""
    if grad_loss.device.type == "cpu" and grad_loss == 1:  # elsewhere the comparison would cost a synchronisation
        return
    for grad in grads:
        grad.mul_(grad_loss)


def _elementwise(params, target, likelihood, reduction):
    dtype = reductions.accumulator(params[0].dtype)
    terms = getattr(likelihoods, likelihood).terms(*_upcast(params, target, dtype))
    nll = functools.reduce(torch.Tensor.add_, terms)
    return (
        torch.empty_like(params[0], dtype=dtype).copy_(nll)
        if reduction == "none"
        else reductions.reduce(nll, reduction)
    )


def _upcast(params, target, dtype):
    return [p.to(dtype) for p in params], target.to(dtype)


def _empty_grads(params, wanted):
    return tuple(torch.empty_like(p) if want else None for p, want in zip(params, wanted, strict=True))


def _buffers(grads, dtype):
    """The gradients that can hold intermediate results."""
    return [grad if grad is not None and grad.dtype == dtype else None for grad in grads]


def _write(grads, derivatives, scale):
    """grads = derivatives * scale, where wanted; a derivative may be in its gradient already."""
    for grad, derivative in zip(grads, derivatives, strict=True):
        if grad is not None:
            torch.mul(derivative, scale, out=grad)


def _blocks(inputs, grads):
    """Pairs of (inputs, grads), cut along the batch on the CPU."""
    first = inputs[0]
    size = BLOCK * torch.get_num_threads()
    if first.device.type != "cpu" or first.numel() <= size:
        return [(inputs, grads)]
    samples = max(size // first[0].numel(), 1)
    pieces = -(-first.shape[0] // samples)
    cut = [(None,) * pieces if t is None else t.split(samples) for t in (*inputs, *grads)]
    return [(block[: len(inputs)], block[len(inputs) :]) for block in zip(*cut, strict=True)]
