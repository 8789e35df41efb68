"""The likelihoods: their nll in nats and its derivatives, element by element.

Both write where they are told, because a pass over memory that is in the cache costs a fraction of one that is not.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch


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


bernoulli = Likelihood(_bernoulli_terms, _bernoulli_derivatives)
mse = Likelihood(_mse_terms, _mse_derivatives)
gaussian = Likelihood(_gaussian_terms, _gaussian_derivatives)
