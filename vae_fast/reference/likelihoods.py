"""Likelihoods: negative log-likelihood of each element in nats, and its derivatives in the parameters.

Each function takes its parameters and then the target, all of one shape; it returns nll and a tuple with one derivative
for each parameter.
"""

import numpy as np

from .arrays import alike


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
