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


@np.errstate(divide="ignore", invalid="ignore")
def bernoulli_probs(probs, target):
    """-log of Bernoulli(target; p) by the rules of torch.nn.functional.binary_cross_entropy.

    -(x max(log p, -100) + (1 - x) max(log(1 - p), -100)); its derivative is (p - x) / max(p (1 - p), 1e-12), whatever
    the logarithms' bound. Not a number for p outside [0, 1].
    """
    p, x = alike(probs=probs, target=target)
    logs = np.maximum(np.log(p), -100.0), np.maximum(np.log1p(-p), -100.0)
    return (x - 1.0) * logs[1] - x * logs[0], ((p - x) / np.maximum(p * (1.0 - p), 1e-12),)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def continuous_bernoulli(logits, target):
    """-log of the continuous Bernoulli on [0, 1] with natural parameter a (Loaiza-Ganem & Cunningham 2019, equation 3).

    Its density is exp(a x) / integral, so the nll is log((exp(a) - 1) / a) - a x: with b = |a|, max(a, 0) + log((1 -
    exp(-b)) / b) - a x. Below b = 1 the logarithm is -b/2 + log(sinh(b/2) / (b/2)), whose Taylor series has the
    coefficients B_2n / (2n (2n)!).
    """
    a, x = alike(logits=logits, target=target)
    b = np.abs(a)
    small, c = b < 1.0, np.where(b < 1.0, 1.0, b)  # c stands where the closed form is right
    square = np.where(small, b, 0.0) ** 2
    tail, slope = special.log_sinhc(square)
    log_partition = np.where(small, square * tail - b / 2, np.log(-np.expm1(-c) / c))
    complement = np.where(small, 0.5 - b * slope, 1.0 / c - 1.0 / np.expm1(c))  # 1 less the target's mean at b
    return np.maximum(a, 0.0) - a * x + log_partition, (np.where(a >= 0, 1.0 - complement, complement) - x,)


def l1(output, target):
    """Absolute error |a - x|: the nll of Laplace(a, 1) less log 2. The derivative at 0 is 0, as in PyTorch."""
    a, x = alike(output=output, target=target)
    return np.abs(a - x), (np.sign(a - x),)


def log_cosh(output, target):
    """log cosh(a - x): the nll of the hyperbolic secant distribution sech(d) / pi less log pi."""
    a, x = alike(output=output, target=target)
    d = np.abs(a - x)
    # log(1 + (cosh d - 1)) near 0, where the other form cancels
    small = np.minimum(d, 1.0)
    near = np.log1p(2 * np.sinh(small / 2) ** 2)
    return np.where(d < 1.0, near, d + np.log1p(np.exp(-2 * d)) - np.log(2.0)), (np.tanh(a - x),)


def huber(output, target, delta=1.0):
    """d^2 / 2 for |d| = |a - x| <= delta, delta (|d| - delta / 2) beyond (Huber 1964)."""
    a, x = alike(output=output, target=target)
    d = a - x
    near = np.abs(d) <= delta
    return np.where(near, d**2 / 2, delta * (np.abs(d) - delta / 2)), (np.where(near, d, delta * np.sign(d)),)


@np.errstate(over="ignore", invalid="ignore")
def student_t(mean, log_scale, target, df=5.0):
    """-log of Student's t: s + (df + 1) / 2 log(1 + q / df) + log(df pi) / 2 + lgamma(df / 2) - lgamma((df + 1) / 2).

    q = ((a - x) exp(-s))^2.
    """
    a, s, x = alike(mean=mean, log_scale=log_scale, target=target)
    inverse = np.exp(-s)
    q = ((a - x) * inverse) ** 2
    # The two logarithms of gamma would cancel, and so all that is large in them is left out.
    rest = special.stirling_remainder(df / 2) - special.stirling_remainder((df + 1) / 2)
    constant = special.HALF_LOG_2PI - df / 2 * special.log1p_minus_x(1 / df, np.log1p(1 / df)) + rest
    nll = constant + s + (df + 1) / 2 * np.log1p(q / df)
    share = (df + 1) / (df + q)
    return nll, (share * (a - x) * inverse**2, 1.0 - share * q)


@np.errstate(over="ignore", invalid="ignore")
def laplace(mean, log_scale, target):
    """-log of Laplace(target; mean, exp(log_scale)): |a - x| exp(-s) + s + log 2."""
    a, s, x = alike(mean=mean, log_scale=log_scale, target=target)
    scaled = np.abs(a - x) * np.exp(-s)
    return scaled + s + np.log(2.0), (np.sign(a - x) * np.exp(-s), 1.0 - scaled)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def discretized_logistic(mean, log_scale, target):
    """-log of a logistic distribution's mass in the target's bin of 1/255 (Salimans et al. 2017, equation 2).

    target: k / 255, k = 0 .. 255; mean and scale are in the same coordinates. The bins at 0 and 1 take the tails. With
    z = (x - mean +- 1/510) / scale the mass is sigmoid(z+) - sigmoid(z-) = sigmoid(z+) sigmoid(-z-) (1 - exp(z- - z+)),
    which loses nothing in the tails.
    """
    mean, s, x = alike(mean=mean, log_scale=log_scale, target=target)
    inverse = np.exp(-s)
    upper, lower, width = (x - mean + 1 / 510) * inverse, (x - mean - 1 / 510) * inverse, inverse / 255
    first, last = x < 1 / 510, x > 1 - 1 / 510
    inner = ~(first | last)
    nll = np.where(last, 0.0, np.logaddexp(0.0, -upper)) + np.where(first, 0.0, np.logaddexp(0.0, lower))
    below, above = np.where(last, 0.0, _sigmoid(-upper)), np.where(first, 0.0, _sigmoid(lower))
    nll = nll - np.where(inner, np.log(-np.expm1(-width)), 0.0)
    stretch = np.where(inner, width / np.expm1(width), 0.0)
    return nll, (inverse * (below - above), upper * below - lower * above + stretch)


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
    scvi-tools), softplus(pi) + nb elsewhere. The difference is written without the two, which may be as large as pi.
    """
    mean, theta, pi, x = alike(mean=mean, theta=theta, pi_logits=pi_logits, target=target)
    zero = x < 1e-8
    nb, derivatives = negative_binomial(mean, theta, np.where(zero, 0.0, x))
    # A zero has probability 1 - missed. Where it is likely, the difference of softplus would cancel.
    missed = -np.expm1(-nb) * _sigmoid(-pi)
    likely = np.log1p(-np.where(missed < 0.5, missed, 0.0))
    rare = np.minimum(np.maximum(-pi, 0.0), nb) + np.log1p(np.exp(-np.abs(pi))) - np.log1p(np.exp(-np.abs(pi + nb)))
    nll = np.where(zero, np.where(missed < 0.5, -likely, rare), nb + np.logaddexp(0.0, pi))
    weight = np.where(zero, _sigmoid(-pi - nb), 1.0)
    dpi = np.where(zero, -missed * _sigmoid(pi + nb), _sigmoid(pi))
    return nll, (*(weight * derivative for derivative in derivatives), dpi)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def categorical(logits, target, ignore_index=None):
    """-log softmax(logits)[target], of the class `target` [...] of logits [..., K] (Bishop 2006, equation 4.108).

    logsumexp(logits) - logits[target], and softmax - onehot for the derivative [..., K]. Elements whose target is
    ignore_index have neither nll nor derivative, whatever their logits; a target that is no class has NaN for both.
    """
    a, index = np.asarray(logits, dtype=np.float64), np.asarray(target)
    if index.shape != a.shape[:-1]:
        raise ValueError(f"target has shape {list(index.shape)}, logits have {list(a.shape)}: all but the last")
    onehot = np.arange(a.shape[-1]) == index[..., None]
    ignored = np.zeros(index.shape, bool) if ignore_index is None else index == ignore_index
    a = np.where(ignored[..., None], 0.0, a)
    top = a.max(-1, keepdims=True)
    below, e = np.where(onehot, a - top, 0.0).sum(-1), np.exp(a - top)
    rest = np.where(onehot, 0.0, e).sum(-1)  # without the target's own term, which is where 1 - softmax cancels
    total = rest + np.exp(below)
    nll = np.log1p(rest + np.expm1(below)) - below
    derivative = np.where(onehot, -rest[..., None], e) / total[..., None]
    invalid = ~onehot.any(-1)
    nll, derivative = np.where(invalid, np.nan, nll), np.where(invalid[..., None], np.nan, derivative)
    return np.where(ignored, 0.0, nll), (np.where(ignored[..., None], 0.0, derivative),)


def _sigmoid(a):
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)
