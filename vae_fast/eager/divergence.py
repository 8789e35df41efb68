"""As `vae_fast.kernels.divergence`: the KL of a Gaussian to its prior, element by element.

A prior is (mean, log-variance, standard deviation), or None for N(0, I). direct: see `scales`.
"""

import torch

from vae_fast.eager.elementary import expm1_minus_x, log_ratio


def closed_form(mean, logvar, std, prior, direct):
    """KL(N(mean, std^2) || prior) in nats (Kingma & Welling 2014, appendix B)."""
    excess = _expm1_minus_x(_log_variance_ratio(logvar, std, prior, direct))
    return excess.add_(_square(mean, prior, direct)).mul_(0.5)


def closed_form_gradient(mean, logvar, std, prior, direct):
    """Derivatives of `closed_form` in the mean and the log-variance."""
    return slope(mean, prior, direct), torch.expm1(_log_variance_ratio(logvar, std, prior, direct)).mul_(0.5)


def monte_carlo(z, eps, logvar, std, prior, direct):
    """log q(z) - log p(z) at z = mean + std eps (Burda et al. 2016); the constants cancel."""
    return (_square(z, prior, direct) - eps.square() - _log_variance_ratio(logvar, std, prior, direct)).mul_(0.5)


def slope(x, prior, direct):
    """(x - prior's mean) / prior's variance: the derivative of -log p(x)."""
    if prior is None:
        return x
    mean, logvar, std = prior
    return (x - mean).div_(std).div_(std) if direct else torch.exp(-logvar).mul_(x - mean)


def _square(x, prior, direct):
    return x * x if prior is None else (x - prior[0]).mul_(slope(x, prior, direct))


def _log_variance_ratio(logvar, std, prior, direct):
    if prior is None:
        return logvar
    return 2 * log_ratio(std, prior[2]) if direct else logvar - prior[1]


def _expm1_minus_x(x):
    """`expm1_minus_x`, and in single precision with all digits also where a deviation is next to the prior's."""
    if x.dtype == torch.float64:
        return expm1_minus_x(x)[1]
    wide = x.double()
    return torch.expm1(wide).sub_(wide).to(x.dtype)
