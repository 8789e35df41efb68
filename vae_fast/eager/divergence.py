"""As `vae_fast.kernels.divergence`: the KL of a Gaussian to its prior, element by element, and its derivatives.

A prior is (mean, log-variance, standard deviation), or None for N(0, I). direct: see `scales`.
"""

import torch

from vae_fast.eager.elementary import HALF, ONE, exp, expm1_minus_x, log_ratio


def closed_form(mean, logvar, std, prior, direct):
    """Twice KL(N(mean, std^2) || prior) in nats (Kingma & Welling 2014, appendix B)."""
    compared = direct and prior is not None
    ratio = log_ratio(std, prior[2]).mul_(2) if compared else _log_variance_ratio(logvar, prior)
    return _add_square(_expm1_minus_x(ratio), mean, prior)


def closed_form_rounded(mean, logvar, std, prior, direct):
    """The same with float32's own digits: see `gaussian._rounded_kl`."""
    if prior is None:
        made = torch.mul(std, std).sub_(logvar)
    elif direct:
        quotient = std / prior[2]
        made = torch.square(quotient).sub_(quotient.log_(), alpha=2)
    else:
        ratio = _log_variance_ratio(logvar, prior)
        made = exp(ratio).sub_(ratio)
    return _add_square(made.sub_(ONE[made.dtype]), mean, prior)


def closed_form_gradient(mean, logvar, std, prior, direct):
    """Derivatives of the KL in the mean and the log-variance."""
    if direct:
        difference = _relative_difference(std, prior)
        half = torch.addcmul(difference, difference, difference, value=0.5)  # ((std / prior's)^2 - 1) / 2
    else:
        half = torch.expm1(_log_variance_ratio(logvar, prior)).mul_(HALF[mean.dtype])
    return slope(mean, prior), half


def _relative_difference(std, prior):
    """std / prior's - 1, of which no digit is lost where they are close."""
    return std - ONE[std.dtype] if prior is None else (std - prior[2]).div_(prior[2])


def monte_carlo(z, eps, logvar, std, prior, direct):
    """Twice log q(z) - log p(z) at z = mean + std eps (Burda et al. 2016); the constants cancel."""
    compared = direct and prior is not None
    ratio = (std / prior[2]).log_().mul_(2) if compared else _log_variance_ratio(logvar, prior)
    return _add_square(torch.addcmul(ratio, eps, eps).neg_(), z, prior)


def slope(x, prior):
    """(x - prior's mean) / prior's variance: the derivative of -log p(x)."""
    return x if prior is None else _distance(x, prior).div_(prior[2])


def _distance(x, prior):
    """(x - prior's mean) / prior's standard deviation."""
    return x if prior is None else (x - prior[0]).div_(prior[2])


def _log_variance_ratio(logvar, prior):
    return logvar if prior is None else logvar - prior[1]


def _add_square(made, x, prior):
    """made + (x - prior's mean)^2 / prior's variance, in its memory."""
    apart = _distance(x, prior)
    return made.addcmul_(apart, apart)


def _expm1_minus_x(x):
    """`expm1_minus_x`, and in single precision with all digits also where a deviation is next to the prior's."""
    if x.dtype == torch.float64:
        return expm1_minus_x(x)[1]
    wide = x.double()
    return torch.expm1(wide).sub_(wide).to(x.dtype)
