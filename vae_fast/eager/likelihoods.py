"""The likelihoods: per-element nll in nats, and its derivatives, in new tensors of the parameters' dtype."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Likelihood(NamedTuple):
    """nll(params, target) -> [B, ...]; derivatives(params, target) -> one tensor a parameter."""

    nll: Callable
    derivatives: Callable


def _bernoulli_nll(params, target):
    # softplus(a) - a x is max(a, 0) - a x + log1p(exp(-|a|)) in two passes; beyond 40 float64 has no digit left of
    # log1p.
    return F.softplus(params[0], threshold=40).addcmul_(params[0], target, value=-1)


def _bernoulli_derivatives(params, target):
    return (torch.sigmoid(params[0]).sub_(target),)


def _mse(params, target):
    return torch.sub(params[0], target).square_()


def _mse_derivatives(params, target):
    return (torch.sub(params[0], target).mul_(2),)


def _gaussian_nll(params, target):
    mean, logvar = params
    excess = torch.sub(mean, target).square_().mul_(torch.exp(-logvar))
    return excess.add_(logvar).add_(math.log(2 * math.pi)).mul_(0.5)


def _gaussian_derivatives(params, target):
    mean, logvar = params
    error = torch.sub(mean, target)
    scaled = torch.exp(-logvar).mul_(error)
    return scaled, error.mul_(scaled).sub_(1).mul_(-0.5)


bernoulli = Likelihood(_bernoulli_nll, _bernoulli_derivatives)
mse = Likelihood(_mse, _mse_derivatives)
gaussian = Likelihood(_gaussian_nll, _gaussian_derivatives)
