"""The likelihoods: their nll in nats and its derivatives, element by element.

Both write where they are told, because a pass over memory that is in the cache costs a fraction of one that is not.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Likelihood(NamedTuple):
    """terms(params, target, out) yields tensors that add up to the nll, one after the other in `out` (None: new ones).

    derivatives(params, target, outs) returns one tensor a parameter, in `outs` where that is not None.
    total(params, target, outs), where the two share work, returns (the nll's sum, the derivatives).
    native(*params, target, reduction="sum") is PyTorch's own op, for at most `most` float32 elements a thread: there,
    its autograd costs less than a Function's host time.
    """

    terms: Callable
    derivatives: Callable
    total: Callable | None = None
    native: Callable | None = None
    most: int = 0


def _bernoulli_terms(params, target, out=None):
    logit = params[0]
    yield torch.clamp(logit, min=0, out=out).addcmul_(logit, target, value=-1)
    yield torch.abs(logit, out=out).neg_().exp_().log1p_()


def _bernoulli_derivatives(params, target, outs):
    return (torch.sigmoid(params[0], out=outs[0]).sub_(target),)


def _bernoulli_total(params, target, outs):
    """log1p(exp(-|a|)) is -log max(s, 1 - s) with s = sigmoid(a), and a sum of logarithms is that of a product."""
    sigmoid = torch.sigmoid(params[0], out=outs[0])
    scratch = torch.clamp(params[0], min=0).addcmul_(params[0], target, value=-1)
    linear = scratch.sum()
    larger = torch.sub(sigmoid, 0.5, out=scratch).abs_().add_(0.5)
    return linear - _sum_of_logs(larger), (sigmoid.sub_(target),)


def _sum_of_logs(values):
    """The sum of the logarithms of a dense tensor of numbers in [1/2, 1], which it overwrites."""
    values = values.as_strided((values.numel(),), (1,))
    total = None
    for _ in range(6):  # 64 factors are at least 2^-64: far from underflow
        half, odd = divmod(len(values), 2)
        if half < 256:
            break
        if odd:
            last = values[-1].log()
            total = last if total is None else total.add_(last)
        values = values[:half].mul_(values[half : 2 * half])
    logs = values.log_().sum()
    return logs if total is None else logs.add_(total)


def _mse_terms(params, target, out=None):
    yield torch.sub(params[0], target, out=out).square_()


def _mse_derivatives(params, target, outs):
    return (torch.sub(params[0], target, out=outs[0]).mul_(2),)


def _mse_total(params, target, outs):
    error = torch.sub(params[0], target, out=outs[0])
    return torch.square(error).sum(), (error.mul_(2),)


def _gaussian_terms(params, target, out=None):
    mean, logvar = params
    yield torch.sub(mean, target, out=out).square_().mul_(torch.exp(-logvar)).mul_(0.5)
    yield torch.add(logvar, math.log(2 * math.pi), out=out).mul_(0.5)


def _gaussian_derivatives(params, target, outs):
    mean, logvar = params
    error = torch.sub(mean, target, out=outs[1])
    scaled = torch.neg(logvar, out=outs[0]).exp_().mul_(error)
    return scaled, error.mul_(scaled).sub_(1).mul_(-0.5)


def _gaussian_total(params, target, outs):
    mean, logvar = params
    error = torch.sub(mean, target, out=outs[1])
    scaled = torch.neg(logvar, out=outs[0]).exp_().mul_(error)
    excess = error.mul_(scaled)
    total = (excess.sum() + logvar.sum() + math.log(2 * math.pi) * logvar.numel()).mul_(0.5)
    return total, (scaled, excess.sub_(1).mul_(-0.5))


bernoulli = Likelihood(
    _bernoulli_terms, _bernoulli_derivatives, _bernoulli_total, F.binary_cross_entropy_with_logits, most=2**16
)
mse = Likelihood(_mse_terms, _mse_derivatives, _mse_total, F.mse_loss, most=2**18)
gaussian = Likelihood(_gaussian_terms, _gaussian_derivatives, _gaussian_total)
