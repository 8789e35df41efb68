"""Parameters and targets of every likelihood over its domain, and the sums of absolute terms its error is held to."""

import numpy as np
import scipy.special
import torch

from tests.support.tolerance import RELATIVE, ROUNDING
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.reference import likelihoods

CORE = ("bernoulli", "mse", "gaussian")  # tested in every layout, in outputs.py
REST = [name for name, row in LIKELIHOODS.items() if name not in CORE and row.domain != "classes"]
SCALE_PARAMETERS = ("log_scale",)


def draw(name, shape, dtype=torch.float32, target_dtype=None, seed=0, spread=2.0):
    """(parameters, target) on the CPU; `spread` is the standard deviation of what the link maps to the parameters."""
    row, generator = LIKELIHOODS[name], torch.Generator().manual_seed(seed)
    values = [spread * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in row.parameters]
    values = [v - 1 if label in SCALE_PARAMETERS else v for label, v in zip(row.parameters, values, strict=True)]
    params = [p.to(dtype) for p in row.linked(values)]
    return params, target(row.domain, shape, generator).to(target_dtype or dtype)


def target(domain, shape, generator):
    """Both ends of [0, 1] and the 256 levels; counts with many zeros, small enough for any dtype to hold."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    if domain == "[0, 1]":
        return (uniform * 255 * 1.2 - 25).round().clamp(0, 255) / 255
    return (uniform.log() * -8).floor() if domain == "counts" else 3 * (uniform - 0.5)


def oracle(name, params, x, scaled=False):
    """(nll, derivatives, terms, derivative terms, exponent) of float64 arrays; scaled: x is a rounded product."""
    nll, derivatives = getattr(likelihoods, name)(*params, x)
    terms, derivative_terms, exponent = TERMS[name](*params, x)
    if scaled:
        terms, *derivative_terms = np.add([terms, *derivative_terms], rounding_of_product(name, params, x))
    return nll, derivatives, terms, derivative_terms, exponent


@np.errstate(over="ignore", invalid="ignore")
def rounding_of_product(name, params, x):
    """Terms of the nll and of each derivative for a target x that is a product, as that of a byte and 1/255.

    A GPU may take the product into a difference without rounding it, and however small the difference is, it is off by
    that rounding of x.
    """

    def results(change):
        nll, derivatives = getattr(likelihoods, name)(*params, x + change * x)
        return np.stack([nll, *derivatives])

    rounding = ROUNDING * RELATIVE
    down, exact, up = map(results, (-rounding, 0, rounding))
    return np.maximum(np.abs(down - exact), np.abs(up - exact)) / RELATIVE


def _gaussian(mean, logvar, x):
    slope = np.abs(mean - x) * np.exp(-logvar)
    square = np.abs(mean - x) * slope
    return (np.abs(logvar) + square + np.log(2 * np.pi)) / 2, (slope, (1 + square) / 2), np.abs(logvar)


def _bernoulli_probs(p, x):
    with np.errstate(divide="ignore"):
        logs = -np.maximum(np.log(p), -100), -np.maximum(np.log1p(-p), -100)
    return x * logs[0] + (1 - x) * logs[1], ((p + x) / np.maximum(p * (1 - p), 1e-12),), 0.0


def _continuous_bernoulli(a, x):
    nll, (derivative,) = likelihoods.continuous_bernoulli(a, x)
    linear = np.maximum(a, 0) - a * x
    return np.maximum(a, 0) + np.abs(a * x) + np.abs(nll - linear), (np.abs(derivative + x) + x,), np.abs(a)


def _l1(a, x):
    return np.abs(a - x), (np.ones_like(x),), 0.0


def _log_cosh(a, x):
    nll, (derivative,) = likelihoods.log_cosh(a, x)
    return nll, (np.abs(derivative),), np.abs(a - x)  # of its own size: near 0 it must not cancel


def _huber(a, x):
    nll, (derivative,) = likelihoods.huber(a, x)
    return nll, (np.abs(derivative),), 0.0


def _student_t(mean, s, x):
    nll, (slope, _) = likelihoods.student_t(mean, s, x)
    return np.abs(nll - s) + np.abs(s) + 1, (np.abs(slope), np.full_like(x, 7.0)), 4 * np.abs(s)  # 1 + df + 1


def _laplace(mean, s, x):
    scaled = np.abs(mean - x) * np.exp(-s)
    return scaled + np.abs(s) + np.log(2), (np.exp(-s), 1 + scaled), np.abs(s)


def _discretized_logistic(mean, s, x):
    inverse = np.exp(-s)
    reach = (np.abs(x) + np.abs(mean) + 1 / 510) * inverse  # of the standard logistic's argument, and its terms
    width = inverse / 255
    terms = reach + 1 + np.abs(np.log(-np.expm1(-width)))
    return terms, (inverse * (1 + reach), reach * (1 + reach) + 1), np.abs(s)


def _poisson(a, x):
    rate = np.exp(a)
    return rate + np.abs(x * a) + np.abs(scipy.special.gammaln(x + 1)), (rate + x,), np.abs(a)


def _negative_binomial(mean, theta, x):
    m = mean + 1e-8
    size = (
        np.abs(theta * np.log(theta / (theta + m)))
        + np.abs(x * np.log(m / (theta + m)))
        + np.abs(scipy.special.gammaln(x + theta) - scipy.special.gammaln(theta))
        + scipy.special.gammaln(x + 1)
    )
    return size, (theta * (m + x) / (m * (theta + m)), size / theta), 0.0


def _zero_inflated_negative_binomial(mean, theta, pi, x):
    size, sizes, _ = _negative_binomial(mean, theta, x)
    reach = 1 + np.abs(pi) + size  # the error of an exponent is a share of its terms
    return size + np.abs(pi) + 1, (*(s * reach for s in sizes), reach), np.abs(pi)


TERMS = {name.removeprefix("_"): function for name, function in list(globals().items()) if name[1:] in LIKELIHOODS}
