"""Likelihoods: negative log-likelihood of each element in nats, and its derivatives in the parameters.

Each function takes its parameters and then the target, all of one shape; it returns nll and a tuple with one derivative
for each parameter.
"""

import numpy as np

from . import special
from .arrays import alike

MEAN_EPSILON = 1e-8  # of the negative binomials


@np.errstate(over="ignore", invalid="ignore")
def bernoulli(logits, target):
    """-log of Bernoulli(target; sigmoid(logits)), or the cross-entropy to a target in (0, 1).

    softplus(a) - a x, with softplus(a) = max(a, 0) + log1p(exp(-|a|)): no overflow for any finite logit (Kingma &
    Welling 2014, C.1). At an infinite logit the nll is not finite (+inf, or NaN from inf - inf and 0 inf) and the
    derivative is its limit, 0 - x or 1 - x.
    """
    a, x = alike(logits=logits, target=target)
    e = np.exp(-np.abs(a))
    sigmoid = np.where(a >= 0, 1.0, e) / (1.0 + e)
    return np.maximum(a, 0.0) - a * x + np.log1p(e), (sigmoid - x,)


@np.errstate(over="ignore", invalid="ignore")
def mse(output, target):
    """Squared error (a - x)^2: the nll of N(a, 1/2) less the constant log(pi) / 2."""
    a, x = alike(output=output, target=target)
    return (a - x) ** 2, (2.0 * (a - x),)


@np.errstate(over="ignore", invalid="ignore")
def gaussian(mean, logvar, target):
    """-log of N(target; mean, exp(logvar)) (Kingma & Welling 2014, C.2).

    (logvar + (a - x)^2 exp(-logvar) + log 2 pi) / 2, with mean a and target x.
    """
    a, logvar, x = alike(mean=mean, logvar=logvar, target=target)
    precision = np.exp(-logvar)
    square = (a - x) ** 2 * precision
    return (logvar + square + np.log(2.0 * np.pi)) / 2, ((a - x) * precision, (1.0 - square) / 2)


@np.errstate(over="ignore", invalid="ignore")
def poisson(log_rate, target):
    """-log of Poisson(target; exp(log_rate)), or its extension to any real target >= 0 by the gamma function."""
    a, x = alike(log_rate=log_rate, target=target)
    rate = np.exp(a)
    return rate - a * x + special.lgamma_1p(x), (rate - x,)


@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def negative_binomial(mean, theta, target):
    """-log of the negative binomial of this mean and inverse dispersion theta: variance mean + mean^2 / theta.

    -log p = theta log((theta + m) / theta) + x log((theta + m) / m) - lgamma(x + theta) + lgamma(theta) + lgamma(x + 1)
    with m = mean + 1e-8, so that a mean of 0 has a finite nll. scvi-tools' `log_nb_positive` adds its 1e-8 to each
    argument of a log instead; to move it into the mean keeps a distribution that sums to 1, and differs from theirs by
    theta log(1 + 1e-8 / theta), less than 1e-8.
    """
    mean, theta, x = alike(mean=mean, theta=theta, target=target)
    m = mean + MEAN_EPSILON
    total = theta + m
    # For mean and target that differ by little the two terms in theta would cancel, so they are taken together:
    # theta log((theta + x) / (theta + m)), which is small, and the rest of lgamma(x + theta) - lgamma(theta).
    y, u = theta + x, (x - m) / total
    log_ratio = np.where(np.abs(u) < 0.4, np.log1p(np.where(np.abs(u) < 0.4, u, 0.0)), np.log(y / total))
    rest = special.stirling_remainder(y) - special.stirling_remainder(theta) - 0.5 * np.log1p(x / theta) - x
    counts = x * np.log(m / total * y) + rest - special.lgamma_1p(x)
    log_likelihood = theta * log_ratio + np.where(x == 0, 0.0, counts)
    slope = special.stirling_remainder_derivative(y) - special.stirling_remainder_derivative(theta)
    dtheta = special.log1p_minus_x(u, log_ratio) + 0.5 * x / theta / y + slope
    return -log_likelihood, (-theta * u / m, -dtheta)


@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def zero_inflated_negative_binomial(mean, theta, pi_logits, target):
    """-log of a zero with probability sigmoid(pi_logits), else of `negative_binomial` (scvi-tools' ZINB).

    With nb the negative binomial's nll: softplus(-pi) - softplus(-pi - nb) where the target is 0 (below 1e-8, as
    scvi-tools), softplus(pi) + nb elsewhere.
    """
    mean, theta, pi, x = alike(mean=mean, theta=theta, pi_logits=pi_logits, target=target)
    zero = x < 1e-8
    nb, derivatives = negative_binomial(mean, theta, np.where(zero, 0.0, x))
    # A zero has probability 1 - missed. Where it is likely, the difference of softplus would cancel.
    missed = -np.expm1(-nb) * _sigmoid(-pi)
    likely = np.log1p(-np.where(missed < 0.5, missed, 0.0))
    rare = np.logaddexp(0.0, -pi) - np.logaddexp(0.0, -pi - nb)
    nll = np.where(zero, np.where(missed < 0.5, -likely, rare), nb + np.logaddexp(0.0, pi))
    weight = np.where(zero, _sigmoid(-pi - nb), 1.0)
    dpi = np.where(zero, -missed * _sigmoid(pi + nb), _sigmoid(pi))
    return nll, (*(weight * derivative for derivative in derivatives), dpi)


def _sigmoid(a):
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)
