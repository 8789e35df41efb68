"""The likelihoods of counts in mpmath, and arguments that reach every branch of ours."""

import functools
import itertools

import mpmath
import numpy as np
import torch

EPSILON = mpmath.mpf(1e-8)  # in the mean of the negative binomials
DIGITS = 50

TARGETS = [0, 1, 2, 3, 7, 30, 999, 12345, 1e6]
MEANS = [0, 1e-4, 0.02, 0.4, 1, 2.6, 29.7, 1e3, 12000, 1e6]
# both sides of 1, where the remainder of Stirling's formula changes its form, of 4 and of 10 (eager and float64)
THETAS = [1e-4, 3e-3, 0.1, 0.5, 0.99999, 1, 1.5, 2.7, 3.99999, 4, 9.99999, 10, 40, 1e3, 1e4, 5e4, 1e6, 1e7, 1e8]
PI_LOGITS = [-40, -3, 0, 0.7, 12, 100]

lgamma = functools.cache(mpmath.loggamma)
digamma = functools.cache(mpmath.digamma)


def grid(*values, dtype):
    """Every combination, as one tensor for each argument."""
    return tuple(torch.tensor(list(itertools.product(*values)), dtype=torch.float64).to(dtype).T.contiguous())


def negative_binomial_grid(dtype):
    """Every combination, and means so near the target that theta's terms cancel: up to and over |u| = 0.4."""
    mean, theta, x = grid(MEANS, THETAS, TARGETS, dtype=dtype)
    near = [-0.67, -0.66, -0.3, -0.01, -1e-4, 0.0, 1e-3, 0.2, 0.39, 0.6, 0.66, 0.67, 0.7]
    _, more_theta, more_x = grid(near, THETAS, TARGETS, dtype=dtype)
    offset = grid(near, THETAS, TARGETS, dtype=dtype)[0]
    more_mean = (more_x + offset * torch.maximum(more_x, more_theta)).clamp(0, 1e6)
    return torch.cat([mean, more_mean]), torch.cat([theta, more_theta]), torch.cat([x, more_x])


def poisson(log_rate, x):
    rate = mpmath.exp(log_rate)
    terms = (rate, x * log_rate, lgamma(1 + x))
    return rate - x * log_rate + terms[2], _size(terms), (rate - x,), (rate + x,)


def negative_binomial(mean, theta, x):
    """(nll, size, derivatives, their sizes): a size is the sum of the absolute terms, whose share is the error."""
    m = mean + EPSILON
    log_theta, log_m = mpmath.log(theta / (theta + m)), mpmath.log(m / (theta + m))
    difference = lgamma(x + theta) - lgamma(theta)
    terms = (theta * log_theta, x * log_m, difference, lgamma(1 + x))
    size = _size(terms)
    dmean = theta * (m - x) / (m * (theta + m))
    dtheta = -(log_theta + (m - x) / (theta + m) + digamma(x + theta) - digamma(theta))
    sizes = (theta * (m + x) / (m * (theta + m)), size / theta)
    return terms[3] - sum(terms[:3]), size, (dmean, dtheta), sizes


def zero_inflated_negative_binomial(mean, theta, pi, x):
    nb, size, (dmean, dtheta), sizes = negative_binomial(mean, theta, x)
    if x > 0:
        nll, weight, dpi, size = nb + softplus(pi), 1, sigmoid(pi), size + softplus(pi)
    else:
        terms = (softplus(-pi), softplus(-pi - nb))
        nll, weight, size = terms[0] - terms[1], sigmoid(-pi - nb), _size(terms)
        dpi = sigmoid(-pi - nb) - sigmoid(-pi)
        # All are proportional to exponentials, and the error of an exponent is a share of its terms.
        sizes = [s * (1 + abs(pi) + nb) for s in sizes]
    return nll, size, (weight * dmean, weight * dtheta, dpi), (*(weight * s for s in sizes), abs(dpi) * (1 + abs(pi)))


def softplus(a):
    return mpmath.log1p(mpmath.exp(a))


def sigmoid(a):
    return 1 / (1 + mpmath.exp(-a))


def _size(terms):
    return sum(abs(term) for term in terms)


def exact(oracle, arguments):
    """The oracle at the very numbers of the tensors: arrays of nll, size, and a tuple of each derivative and size."""
    rows = []
    with mpmath.workdps(DIGITS):
        for values in zip(*(a.double().tolist() for a in arguments), strict=True):
            nll, size, derivatives, sizes = oracle(*map(mpmath.mpf, values))
            rows.append([float(nll), float(size), *map(float, derivatives), *map(float, sizes)])
    nll, size, *rest = np.array(rows).T
    return nll, size, rest[: len(rest) // 2], rest[len(rest) // 2 :]
