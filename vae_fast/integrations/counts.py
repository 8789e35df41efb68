"""scvi-tools' count likelihoods: log-probabilities of counts by the fused losses, elementwise or summed over genes.

The only module of scvi-tools that holds `log_nb_positive` and `log_zinb_positive` is the one that defines them: its
distributions find them there at each call, and nothing else imports them.
"""

import functools
import warnings

import torch

from vae_fast import checks
from vae_fast.functional import reconstruction_loss
from vae_fast.integrations.patching import add, wrap
from vae_fast.integrations.tensors import result_dtype, unexpanded

EPS = 1e-8  # theirs, and the one that our negative binomials add to the mean


def changes():
    from scvi.distributions import _negative_binomial as module

    log_prob = functools.wraps(module.Poisson.log_prob)(_poisson_log_prob(module.Poisson.log_prob))
    return [
        wrap(module, "log_nb_positive", _log_nb_positive),
        wrap(module, "log_zinb_positive", _log_zinb_positive),
        add(module.Poisson, "log_prob", log_prob),  # torch's Poisson, from which it inherits, keeps its own
    ]


def summed_over_genes(value):
    """A patched distribution wrapped so that log_prob(x).sum(-1) is one pass; any other value as it is."""
    return _Summed(value) if _row_sums(value) is not None else value


class _Summed:
    """A distribution whose log_prob(x).sum(-1) is one pass for a matrix of counts; all else is its own."""

    def __init__(self, distribution):
        self._distribution = distribution

    def __getattr__(self, name):
        return getattr(self._distribution, name)

    def log_prob(self, value):
        return _LogProb(self._distribution, value)


class _LogProb:
    """log_prob(value), before it is known whether only its sum is wanted."""

    def __init__(self, distribution, value):
        self._distribution, self._value = distribution, value

    def __getattr__(self, name):
        return getattr(self._distribution.log_prob(self._value), name)

    def sum(self, *args, **kwargs):
        distribution, value = self._distribution, self._value
        made = None
        if args == (-1,) and not kwargs:
            made = _row_sums(distribution)(distribution, value)
        return distribution.log_prob(value).sum(*args, **kwargs) if made is None else made


def _row_sums(distribution):
    """The function (distribution, value) that sums its log_prob over genes; None for other types, subclasses too."""
    from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

    kinds = {NegativeBinomial: _nb_rows, ZeroInflatedNegativeBinomial: _zinb_rows, Poisson: _poisson_rows}
    return kinds.get(type(distribution))


def _nb_rows(px, x):
    if px.on_mps or px._eps != EPS:
        return None
    made = _nb(x, px.mu, px.theta, "sample")
    if made is not None and px._validate_args:
        _warn_outside_support(px, x)
    return made


def _zinb_rows(px, x):
    made = None if px.on_mps else _zinb(x, px.mu, px.theta, px.zi_logits, "sample")
    if made is not None:
        _warn_outside_support(px, x)
    return made


def _poisson_rows(px, x):
    if px._validate_args:
        px._validate_sample(x)
    return _poisson(x, px.rate, "sample")


def _warn_outside_support(px, x):
    """As their log_prob does."""
    from scvi import settings

    try:
        px._validate_sample(x)
    except ValueError:
        message = "The value argument must be within the support of the distribution"
        warnings.warn(message, UserWarning, stacklevel=settings.warnings_stacklevel)


def _log_nb_positive(theirs):
    def log_nb_positive(x, mu, theta, eps=EPS, log_fn=torch.log, lgamma_fn=torch.lgamma):
        made = _nb(x, mu, theta) if _is_standard(eps, log_fn, lgamma_fn) else None
        return theirs(x, mu, theta, eps, log_fn, lgamma_fn) if made is None else made

    return log_nb_positive


def _log_zinb_positive(theirs):
    def log_zinb_positive(x, mu, theta, pi, eps=EPS, log_fn=torch.log, lgamma_fn=torch.lgamma):
        made = _zinb(x, mu, theta, pi) if _is_standard(eps, log_fn, lgamma_fn) else None
        return theirs(x, mu, theta, pi, eps, log_fn, lgamma_fn) if made is None else made

    return log_zinb_positive


def _poisson_log_prob(theirs):
    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        made = _poisson(value, self.rate)
        return theirs(self, value) if made is None else made

    return log_prob


def _is_standard(eps, log_fn, lgamma_fn):
    return isinstance(eps, float) and eps == EPS and log_fn is torch.log and lgamma_fn is torch.lgamma


def _nb(x, mu, theta, reduction="none"):
    return _log_prob("negative_binomial", x, (mu, theta), reduction)


def _zinb(x, mu, theta, pi, reduction="none"):
    # Theirs multiplies by a float32 mask: it never returns less.
    return _log_prob("zero_inflated_negative_binomial", x, (mu, theta, pi), reduction, at_least=torch.float32)


def _poisson(x, rate, reduction="none"):
    return _log_prob("poisson", x, (rate,), reduction, link=_log_rate)


def _log_rate(rate):
    """In float32 at least, because exp follows; finite at a rate of 0, where a count of 0 has log-probability 0."""
    wide = rate.to(torch.promote_types(rate.dtype, torch.float32))
    return wide.log().clamp(min=torch.finfo(wide.dtype).min)


def _log_prob(likelihood, x, params, reduction, *, link=None, at_least=None):
    """Nats of their shape and dtype, link(parameter) being what the likelihood takes; None where theirs must do it.

    That is below two dimensions and, to sum, above; where an argument is no dense tensor or on another device; where x
    requires a gradient.
    """
    tensors = (x, *params)
    if not all(isinstance(t, torch.Tensor) and t.layout == torch.strided and t.dim() for t in tensors):
        return None
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    if dtype not in checks.FLOATS or x.requires_grad or any(t.device != x.device for t in params):
        return None
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    if len(shape) < 2 or (reduction == "sample" and len(shape) > 2):
        return None
    counts = x if x.is_floating_point() else x.to(torch.promote_types(dtype, torch.float32))
    params = [unexpanded(p).to(dtype) for p in params]  # theirs broadcast a theta of one number a gene
    first, *others = params if link is None else map(link, params)
    nll = reconstruction_loss((first.expand(shape), *others), counts.expand(shape), likelihood, reduction=reduction)
    made = result_dtype(params[0])
    if not x.is_floating_point():  # theirs takes the lgamma of whole numbers, which has the default dtype
        made = torch.promote_types(made, torch.get_default_dtype())
    return nll.neg().to(made if at_least is None else torch.promote_types(made, at_least))
