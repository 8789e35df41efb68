"""The likelihoods: their nll in nats and its derivatives, element by element.

Both write where they are told, because a pass over memory that is in the cache costs a fraction of one that is not.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from vae_fast.eager import special


class Likelihood(NamedTuple):
    """terms(params, target, out) yields tensors that add up to the nll, one after the other in `out` (None: new ones).

    derivatives(params, target, outs) returns one tensor a parameter, in `outs` where that is not None.
    """

    terms: Callable
    derivatives: Callable


def _bernoulli_terms(params, target, out=None):
    logit = params[0]
    yield torch.clamp(logit, min=0, out=out).addcmul_(logit, target, value=-1)
    yield torch.abs(logit, out=out).neg_().exp_().log1p_()


def _bernoulli_derivatives(params, target, outs):
    return (torch.sigmoid(params[0], out=outs[0]).sub_(target),)


def _mse_terms(params, target, out=None):
    yield torch.sub(params[0], target, out=out).square_()


def _mse_derivatives(params, target, outs):
    return (torch.sub(params[0], target, out=outs[0]).mul_(2),)


def _gaussian_terms(params, target, out=None):
    mean, logvar = params
    yield torch.sub(mean, target, out=out).square_().mul_(torch.exp(-logvar)).mul_(0.5)
    yield torch.add(logvar, math.log(2 * math.pi), out=out).mul_(0.5)


def _gaussian_derivatives(params, target, outs):
    mean, logvar = params
    error = torch.sub(mean, target, out=outs[1])
    scaled = torch.neg(logvar, out=outs[0]).exp_().mul_(error)
    return scaled, error.mul_(scaled).sub_(1).mul_(-0.5)


def _poisson_terms(params, target, out=None):
    yield torch.exp(params[0], out=out).addcmul_(params[0], target, value=-1)
    yield torch.lgamma(target + 1)


def _poisson_derivatives(params, target, outs):
    return (torch.exp(params[0], out=outs[0]).sub_(target),)


def _negative_binomial_parts(mean, theta, x):
    """What the nll and its derivatives share: mean + 1e-8, y = theta + x, y / (theta + mean), that less 1, its log."""
    mean = mean + 1e-8  # as scvi-tools, whose logarithms it keeps finite at 0
    y, total = theta + x, theta + mean
    ratio, u = y / total, (x - mean) / total
    return mean, y, ratio, u, torch.where(u.abs() < 0.4, torch.log1p(u), ratio.log())


def _negative_binomial_nll(mean, theta, x):
    """The formula of the kernel: no term in it grows with theta."""
    mean, y, ratio, _, log_ratio = _negative_binomial_parts(mean, theta, x)
    log_likelihood = x * (ratio * (mean / (x + 1))).log_()
    log_likelihood.sub_(((x + 1) * (x / theta + 1)).log_(), alpha=0.5)
    log_likelihood.add_(special.stirling_remainder(y, y.log()) - special.stirling_remainder(theta, theta.log()))
    log_likelihood.sub_(special.stirling_remainder(x + 1, torch.log1p(x)).sub_(special.REMAINDER_1))
    return log_likelihood.mul_(x != 0).addcmul_(theta, log_ratio).neg_()


def _negative_binomial_terms(params, target, out=None):
    yield _negative_binomial_nll(*params, target)


def _negative_binomial_derivatives(params, target, outs):
    _, theta = params
    mean, y, _, u, log_ratio = _negative_binomial_parts(*params, target)
    slope = special.log1p_minus_x(u, log_ratio).add_(target / theta / y, alpha=0.5)
    # The difference first: it is exactly 0 at a target of 0, where the rest is small.
    remainder = special.stirling_remainder_derivative(y, y.log())
    slope.add_(remainder.sub_(special.stirling_remainder_derivative(theta, theta.log())))
    return torch.mul(theta, u).div_(mean).neg_(), slope.neg_()


def _zero_inflated_parts(params, target):
    """Where the count is a zero, and what a zero's formulas share: its probability is 1 - missed."""
    mean, theta, pi = params
    zero = target < 1e-8  # as scvi-tools
    x = target.masked_fill(zero, 0)
    nll = _negative_binomial_nll(mean, theta, x)
    return zero, x, nll, torch.expm1(-nll).neg_().mul_(torch.sigmoid(-pi))


def _zero_inflated_negative_binomial_terms(params, target, out=None):
    pi = params[2]
    zero, _, nll, missed = _zero_inflated_parts(params, target)
    rare = F.logsigmoid(pi + nll) - F.logsigmoid(pi)
    of_zero = torch.where(missed < 0.5, torch.log1p(-missed).neg_(), rare)
    yield torch.where(zero, of_zero, nll - F.logsigmoid(-pi))


def _zero_inflated_negative_binomial_derivatives(params, target, outs):
    mean, theta, pi = params
    zero, x, nll, missed = _zero_inflated_parts(params, target)
    weight = torch.sigmoid(-pi - nll).masked_fill_(~zero, 1)
    dmean, dtheta = _negative_binomial_derivatives((mean, theta), x, (None, None))
    dpi = torch.where(zero, torch.sigmoid(pi + nll).mul_(missed).neg_(), torch.sigmoid(pi))
    return dmean.mul_(weight), dtheta.mul_(weight), dpi


bernoulli = Likelihood(_bernoulli_terms, _bernoulli_derivatives)
mse = Likelihood(_mse_terms, _mse_derivatives)
gaussian = Likelihood(_gaussian_terms, _gaussian_derivatives)
poisson = Likelihood(_poisson_terms, _poisson_derivatives)
negative_binomial = Likelihood(_negative_binomial_terms, _negative_binomial_derivatives)
zero_inflated_negative_binomial = Likelihood(
    _zero_inflated_negative_binomial_terms, _zero_inflated_negative_binomial_derivatives
)
