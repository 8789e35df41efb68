"""The likelihoods of counts: nll and derivatives, as `eager.likelihoods` wants them."""

from typing import NamedTuple

import torch

from vae_fast.eager import special
from vae_fast.eager.elementary import exp_minus, select


def poisson_terms(params, target, out=None):
    yield torch.exp(params[0], out=out).addcmul_(params[0], target, value=-1)
    yield special.lgamma_1p(target)


def poisson_derivatives(params, target, outs):
    return (torch.exp(params[0], out=outs[0]).sub_(target),)


def poisson_both(params, target, outs):
    rate = torch.exp(params[0], out=outs[0])
    nll = special.lgamma_1p(target).addcmul_(params[0], target, value=-1).add_(rate)
    return nll, (rate.sub_(target),)


class _Parts(NamedTuple):
    """Parts of the negative binomial's formula, in which theta below 1 is a case of its own; the kernel has another."""

    mean: torch.Tensor
    theta: torch.Tensor
    small: torch.Tensor  # 1 where theta < 1 and lgamma is brought to 1 + theta
    y: torch.Tensor
    upper: torch.Tensor
    lower: torch.Tensor
    inverse: torch.Tensor
    f: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    log_ratio: torch.Tensor


def _parts(mean, theta, x):
    mean = mean + 1e-8  # as scvi-tools, whose logarithms it keeps finite at 0
    theta = theta.clamp(max=1e18)  # the Poisson limit, and products below stay finite
    small, y = (theta < 1).to(theta.dtype), theta + x
    upper, lower = y + small, theta + small
    inverse = 1 / (theta + mean)
    u = (x - mean).mul_(inverse)  # y / (theta + mean) - 1
    f = (upper * theta).div_(y * lower)  # exactly 1 at x = 0 and at theta >= 1, equal products
    log_ratio = (y * inverse).mul_(f).log_()
    series = (u.abs() < 0.4) & (f == 1)
    v = select(series, special.log1p_minus_x(u), log_ratio - u)
    log_ratio = select(series, u + v, log_ratio)
    return _Parts(mean, theta, small, y, upper, lower, inverse, f, u, v, log_ratio)


def _nll(parts, x):
    """Stirling's formula in the three lgammas: no term that is left grows with theta."""
    over_1 = 1 / (x + 1)
    counts = (parts.upper * parts.inverse).mul_(parts.mean * over_1).log_().mul_(x)
    # Half a logarithm: of roots, because a tiny theta makes both factors large, and their product overflow.
    counts.sub_((parts.y / parts.theta).sqrt_().mul_((x + 1).div_(parts.f).sqrt_()).log_())
    counts.add_(special.stirling_remainder(1 / parts.upper) - special.stirling_remainder(1 / parts.lower))
    counts.sub_(special.stirling_remainder(over_1).sub_(special.REMAINDER_1))
    return counts.mul_((x != 0).to(x.dtype)).addcmul_(parts.theta, parts.log_ratio).neg_()


def _derivatives(parts, x, outs):
    over_upper, over_lower = 1 / parts.upper, 1 / parts.lower
    slope = (x / parts.theta).div_(parts.y).mul_((parts.small + 1) * 0.5)
    slope.add_((over_lower - over_upper).mul_(parts.small), alpha=0.5)
    # This difference first: it is exactly 0 at a target of 0, where the rest is small.
    slope.add_(special.stirling_remainder_derivative(over_upper) - special.stirling_remainder_derivative(over_lower))
    dmean = torch.mul(parts.theta, parts.u, out=outs[0]).div_(parts.mean).neg_()
    return dmean, torch.add(slope, parts.v, out=outs[1]).neg_()


def negative_binomial_terms(params, target, out=None):
    yield _nll(_parts(*params, target), target)


def negative_binomial_derivatives(params, target, outs):
    return _derivatives(_parts(*params, target), target, outs)


def negative_binomial_both(params, target, outs):
    parts = _parts(*params, target)
    return _nll(parts, target), _derivatives(parts, target, outs)


class _ZeroInflated(NamedTuple):
    zero: torch.Tensor  # where the count is one
    counted: torch.Tensor  # 0 there, and 1 elsewhere
    x: torch.Tensor  # the counts, exactly 0 there
    parts: _Parts
    nll: torch.Tensor  # of the negative binomial
    missed: torch.Tensor  # 1 - the probability of a zero


def _zero_inflate(mean, theta, pi, target):
    zero = target < 1e-8  # as scvi-tools
    counted = 1 - zero.to(target.dtype)
    x = target * counted
    parts = _parts(mean, theta, x)
    nll = _nll(parts, x)
    return _ZeroInflated(zero, counted, x, parts, nll, torch.expm1(-nll).neg_().mul_(torch.sigmoid(-pi)))


def _zero_inflated_nll(made, pi):
    softplus = exp_minus(pi.abs()).log1p_()  # of -|pi|
    # softplus(-pi) - softplus(-pi - nll), of which neither is formed: both may be as large as pi.
    rare = torch.minimum(pi.neg().clamp_(min=0), made.nll).add_(softplus)
    rare.sub_(exp_minus(pi.add(made.nll).abs_()).log1p_())
    of_zero = select(made.missed < 0.5, torch.log1p(-made.missed).neg_(), rare)
    return select(made.zero, of_zero, softplus.add_(pi.clamp(min=0)).add_(made.nll))


def _zero_inflated_derivatives(made, pi, outs):
    weight = torch.maximum(torch.sigmoid(-pi - made.nll), made.counted)
    dmean, dtheta = _derivatives(made.parts, made.x, outs)
    share = torch.sigmoid(pi)
    of_zero = torch.sigmoid(pi + made.nll).mul_(made.missed).neg_()
    return dmean.mul_(weight), dtheta.mul_(weight), select(made.zero, of_zero, share)


def zero_inflated_terms(params, target, out=None):
    yield _zero_inflated_nll(_zero_inflate(*params, target), params[2])


def zero_inflated_derivatives(params, target, outs):
    return _zero_inflated_derivatives(_zero_inflate(*params, target), params[2], outs)


def zero_inflated_both(params, target, outs):
    made = _zero_inflate(*params, target)
    return _zero_inflated_nll(made, params[2]), _zero_inflated_derivatives(made, params[2], outs)
