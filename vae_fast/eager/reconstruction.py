"""Reduces any likelihood in PyTorch: forward, forward with gradient, backward."""

import functools
import math

import torch

from vae_fast.eager import likelihoods, reductions, targets
from vae_fast.eager.blocks import blocks
from vae_fast.eager.elementary import cast, is_at_hand
from vae_fast.eager.gradients import Gradients


def forward(params, target, likelihood, reduction, wanted, extras=targets.PLAIN):
    """As `vae_fast.kernels.reconstruction.forward`."""
    if reduction in ("none", "sample"):
        return _elementwise(params, target, likelihood, reduction, extras), (None,) * len(params)
    formulas, dtype, grads = _formulas(likelihood), reductions.accumulator(params[0].dtype), Gradients(params, wanted)
    count, sums = reductions.divisor(reduction, target.shape), []
    for *inputs, weight, _, outs in _blocks(params, target, grads.dense, dtype, extras):
        total, derivatives = total_of_block(formulas, *inputs, weight, _buffers(outs, dtype), any(wanted))
        sums.append(total)
        grads.add(outs, derivatives, formulas.factor / max(count, 1), weight)
    return reductions.finish(sums, reduction, target.shape), grads.finish()


def keeps(likelihood, weight):
    """Whether `forward_keeping` keeps the derivatives: they have most of their work in common with the loss."""
    return _formulas(likelihood).both is not None and weight is None


def forward_keeping(params, target, likelihood, reduction, wanted, extras=targets.PLAIN):
    """(loss [B] or elementwise, the derivatives: None, but for those `wanted` of a likelihood that it `keeps`)."""
    if not keeps(likelihood, extras[0]):
        return _elementwise(params, target, likelihood, reduction, extras), (None,) * len(params)
    formulas, dtype = _formulas(likelihood), reductions.accumulator(params[0].dtype)
    kept = tuple(torch.empty_like(params[0], dtype=dtype) if want else None for want in wanted)
    loss = torch.empty_like(params[0], dtype=dtype) if reduction == "none" else None
    sums = []
    for *inputs, _, losses, outs in _blocks(params, target, kept, dtype, extras, loss):
        nll, derivatives = formulas.both(*inputs, outs)
        for out, derivative in zip(outs, derivatives, strict=True):
            if out is not None and out is not derivative:
                out.copy_(derivative)
        sums.append(reductions.partial(nll, reduction) if losses is None else losses.copy_(nll))
    return reductions.finish(sums, reduction, target.shape) if loss is None else loss, kept


def backward(grad_loss, params, target, likelihood, reduction, wanted, extras=targets.PLAIN, kept=()):
    """As `vae_fast.kernels.reconstruction.backward`, for a scalar loss with its own gradient alone.

    kept: what `forward_keeping` kept, if anything.
    """
    formulas, dtype, grads = _formulas(likelihood), reductions.accumulator(params[0].dtype), Gradients(params, wanted)
    upstream = reductions.spread(grad_loss, target, reduction)
    if kept:
        grads.add(grads.dense, kept, upstream, None)
        return grads.finish()
    for *inputs, weight, g, outs in _blocks(params, target, grads.dense, dtype, extras, upstream):
        scale = g if formulas.factor == 1 else g * formulas.factor
        grads.add(outs, formulas.derivatives(*inputs, _buffers(outs, dtype)), scale, weight)
    return grads.finish()


def scale_(grads, grad_loss):
    """Multiply the gradients made in forward by the upstream gradient, 0-d, in place."""
    if is_at_hand(grad_loss) and grad_loss.item() == 1:
        return
    for grad in grads:
        grad.mul_(grad_loss)


def _elementwise(params, target, likelihood, reduction, extras):
    dtype = reductions.accumulator(params[0].dtype)
    loss = torch.empty_like(params[0], dtype=dtype) if reduction == "none" else None
    sums = []
    for *inputs, weight, losses, _ in _blocks(params, target, (), dtype, extras, loss):
        nll = nll_of_block(_formulas(likelihood), *inputs, weight)
        sums.append(reductions.partial(nll, reduction) if losses is None else losses.copy_(nll))
    return reductions.finish(sums, reduction, target.shape) if loss is None else loss


def nll_of_block(formulas, params, target, weight):
    """That of each element of a block, in new memory."""
    nll = functools.reduce(torch.Tensor.add_, formulas.terms(params, target))
    return nll if weight is None else targets.weighted(nll, weight, out=nll)


def _formulas(likelihood):
    return getattr(likelihoods, likelihood)


def total_of_block(formulas, params, target, weight, buffers, differentiate):
    """The sum of a block's nll, and the derivatives, which may be in `buffers`.

    They are made where `differentiate` asks for them, or where they share the work of the nll.
    """
    rest = formulas, params, target, buffers, differentiate
    if weight is None:
        return _total(targets.Sums(None), *rest)
    if is_at_hand(target):
        made = _total(targets.Sums(weight), *rest)
        if math.isfinite(made[0].item()):  # or what the weight leaves out may be NaN
            return made
    return _total(targets.Sums(weight, targets.weighted), *rest)


def _total(sums, formulas, params, target, buffers, differentiate):
    if formulas.total is not None:
        return formulas.total(params, target, buffers, sums)
    if formulas.both is not None and differentiate:
        nll, derivatives = formulas.both(params, target, buffers)
        return sums.of(nll), derivatives
    scratch = next((b for b in buffers if b is not None), None)
    scratch = torch.empty_like(target) if scratch is None else scratch
    total = sum(map(sums.of, formulas.terms(params, target, scratch)))
    return total, formulas.derivatives(params, target, buffers) if differentiate else (None,) * len(params)


def _buffers(grads, dtype):
    """The gradients that can hold intermediate results."""
    return [grad if grad is not None and grad.dtype == dtype else None for grad in grads]


def _blocks(params, target, grads, dtype, extras, upstream=None):
    """(params, target, weight, upstream gradient, grads), block by block: all but the last in `dtype`."""
    weight, seed, scale = extras
    weight = None if weight is None else targets.own_size(weight, dtype)
    target, scale = _sampled(params, target, seed, scale)
    whole = (p if p.shape == target.shape else p.expand(target.shape) for p in params)
    for x, w, g, *tensors in blocks((target, weight, upstream, *whole, *grads)):
        values, outs = [cast(t, dtype) for t in tensors[: len(params)]], tensors[len(params) :]
        yield values, targets.read(x, scale, dtype), w, None if g is None else cast(g, dtype), outs


def _sampled(params, target, seed, scale):
    """The target and its scale, after sampling where there is a seed."""
    return (target, scale) if seed is None else (targets.sampled(target, seed, scale, params[0]), 1.0)
