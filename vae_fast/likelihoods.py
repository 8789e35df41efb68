"""The table of likelihoods: what each is called and where it stands in the three rooms."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from vae_fast import classes
from vae_fast.classes import Categorical


@dataclass(frozen=True)
class Likelihood:
    """A row of the table. The three rooms hold its formulas in `likelihoods.py`, under `name`.

    parameters: the names of its parameter tensors; `mean` maps them to the mean of the target, `domain` says which
    targets it is for: "[0, 1]", "real", "counts" or "classes". link: maps any real numbers, as a network's last layer
    gives them, to valid parameters; None where they are valid themselves. check_target(target, parameter) raises unless
    the target is one; None where that is floats of the parameter's shape.

    "classes" are indices into the parameter's last dimension, which the target does not have: kernels and eager have a
    `categorical.py` for them. Their mean is that of their one-hot vectors, the probabilities.
    """

    name: str
    parameters: tuple[str, ...]
    domain: str
    mean: Callable[..., torch.Tensor]
    link: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] | None = None
    check_target: Callable[[torch.Tensor, torch.Tensor], None] | None = None


def _first(mean, *others):
    return mean


def _both_positive(mean, theta):
    return F.softplus(mean), F.softplus(theta)


def _continuous_bernoulli_mean(logits):
    """1 / (1 - exp(-a)) - 1 / a, which is 1/2 at 0."""
    a = logits.double()
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    return (-1 / torch.expm1(-a) - 1 / a).to(logits.dtype)


LIKELIHOODS = {
    row.name: row
    for row in (
        Likelihood("bernoulli", ("logits",), "[0, 1]", torch.sigmoid),
        Likelihood("bernoulli_probs", ("probs",), "[0, 1]", _first, torch.sigmoid),
        Likelihood("continuous_bernoulli", ("logits",), "[0, 1]", _continuous_bernoulli_mean),
        Likelihood("mse", ("output",), "real", _first),
        Likelihood("l1", ("output",), "real", _first),
        Likelihood("log_cosh", ("output",), "real", _first),
        Likelihood("gaussian", ("mean", "logvar"), "real", _first),
        Likelihood("laplace", ("mean", "log_scale"), "real", _first),
        Likelihood("discretized_logistic", ("mean", "log_scale"), "[0, 1]", _first),
        Likelihood("poisson", ("log_rate",), "counts", torch.exp),
        Likelihood("negative_binomial", ("mean", "theta"), "counts", _first, _both_positive),
        Likelihood(
            "zero_inflated_negative_binomial",
            ("mean", "theta", "pi_logits"),
            "counts",
            lambda mean, theta, pi_logits: mean * torch.sigmoid(-pi_logits),
            lambda mean, theta, pi_logits: (*_both_positive(mean, theta), pi_logits),
        ),
        Likelihood("categorical", ("logits",), "classes", partial(torch.softmax, dim=-1), check_target=classes.check),
    )
}


def lookup(likelihood):
    """The row of `likelihood`, a name or a `Categorical`. Raises ValueError, naming the choices, for an unknown one."""
    if isinstance(likelihood, Categorical):
        return LIKELIHOODS["categorical"]
    try:
        return LIKELIHOODS[likelihood]
    except (KeyError, TypeError):
        choices = ", ".join(map(repr, LIKELIHOODS))
        raise ValueError(f"likelihood is {likelihood!r}: expected one of {choices}") from None
