"""The table of likelihoods: what each is called and where it stands in the three rooms."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

from vae_fast import checks
from vae_fast.classes import Categorical
from vae_fast.eager.reductions import accumulator
from vae_fast.ops import plain


@dataclass(frozen=True)
class Likelihood:
    """A row of the table. The three rooms hold its formulas in `likelihoods.py`, under `name`.

    parameters: the names of its parameter tensors; `mean` maps them to the mean of the target, `domain` says which
    targets it is for: "[0, 1]", "real", "counts" or "classes". link: maps any real numbers, as a network's last layer
    gives them, to valid parameters; None where they are valid themselves. constants: numbers that the formulas take;
    for classes, the index that is left out, if any.

    "classes" are indices into the parameter's last dimension, which the target does not have: kernels and eager have a
    `categorical.py` for them. Their mean is that of their one-hot vectors, the probabilities.
    """

    name: str
    parameters: tuple[str, ...]
    domain: str
    mean: Callable[..., torch.Tensor]
    link: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] | None = None
    constants: tuple[float, ...] = ()

    def linked(self, values):
        """Valid parameters, a tuple, of any real numbers: one tensor of them a parameter."""
        made = values if self.link is None else self.link(*values)
        return (made,) if isinstance(made, torch.Tensor) else tuple(made)

    def with_constants(self, params):
        """The parameters and, behind them, a 0-d tensor for each constant, as the formulas take them."""
        if not self.constants:
            return params
        dtype = accumulator(params[0].dtype)
        return *params, *(plain.constant(checks.held(value, dtype), dtype, params[0]) for value in self.constants)


@dataclass(frozen=True)
class Huber:
    """The Huber loss: error^2 / 2 up to `delta`, and delta (|error| - delta / 2) beyond (Huber 1964).

    Args:
        delta: a finite number > 0, in the units of the target.

    Raises:
        TypeError, ValueError: delta is not such a number.

    >>> reconstruction_loss(torch.zeros(1, 2), torch.tensor([[0.5, 3.0]]), Huber(delta=1.0), reduction="none")
    tensor([[0.1250, 2.5000]])
    """

    delta: float = 1.0
    name = "huber"

    def __post_init__(self):
        checks.positive("delta", self.delta)

    @property
    def constants(self) -> tuple[float, ...]:
        return (float(self.delta),)


@dataclass(frozen=True)
class StudentT:
    """Student's t distribution with `df` degrees of freedom: heavier tails than a Gaussian's (Takahashi et al. 2018).

    Args:
        df: a finite number > 0.

    Raises:
        TypeError, ValueError: df is not such a number.

    >>> zeros = torch.zeros(1, 1)
    >>> reconstruction_loss((zeros, zeros), zeros, StudentT(df=1.0)).item()  # Cauchy: log pi
    1.1447...
    """

    df: float = 5.0
    name = "student_t"

    def __post_init__(self):
        checks.positive("df", self.df)

    @property
    def constants(self) -> tuple[float, ...]:
        """df, and the logarithm of the density's constant.

        Where df is large the logarithms of gamma would cancel: NIST DLMF 5.11.13 has their difference. Beyond 1e30,
        where float32 ends soon, it is a Gaussian to all digits.
        """
        df = min(float(self.df), 1e30)
        if df > 30:  # five terms leave 4e-16
            x = 2 / df
            series = x / 8 - x**3 / 192 + x**5 / 640 - 17 * x**7 / 14336 + 31 * x**9 / 18432
            return df, 0.5 * math.log(2 * math.pi) + series
        return df, 0.5 * math.log(df * math.pi) + math.lgamma(df / 2) - math.lgamma((df + 1) / 2)


LikelihoodLike = str | Huber | StudentT | Categorical  # what `lookup` takes


def _first(mean, *others):
    return mean


def _both_positive(mean, theta):
    return F.softplus(mean), F.softplus(theta)


def _unless_zero(mean, theta, pi_logits):
    return mean * torch.sigmoid(-pi_logits)


def _positive_beside_logits(mean, theta, pi_logits):
    return *_both_positive(mean, theta), pi_logits


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
        Likelihood("huber", ("output",), "real", _first, constants=Huber().constants),
        Likelihood("gaussian", ("mean", "logvar"), "real", _first),
        Likelihood("laplace", ("mean", "log_scale"), "real", _first),
        Likelihood("student_t", ("mean", "log_scale"), "real", _first, constants=StudentT().constants),
        Likelihood("discretized_logistic", ("mean", "log_scale"), "[0, 1]", _first),
        Likelihood("poisson", ("log_rate",), "counts", torch.exp),
        Likelihood("negative_binomial", ("mean", "theta"), "counts", _first, _both_positive),
        Likelihood(
            "zero_inflated_negative_binomial",
            ("mean", "theta", "pi_logits"),
            "counts",
            _unless_zero,
            _positive_beside_logits,
        ),
        Likelihood("categorical", ("logits",), "classes", partial(torch.softmax, dim=-1)),
    )
}


def lookup(likelihood):
    """The row of `likelihood`, a name or a dataclass. Raises ValueError, naming the choices, for an unknown one."""
    if isinstance(likelihood, str) and likelihood in LIKELIHOODS:
        return LIKELIHOODS[likelihood]
    if isinstance(likelihood, (Huber, StudentT, Categorical)):
        return replace(LIKELIHOODS[likelihood.name], constants=likelihood.constants)
    choices = ", ".join(map(repr, LIKELIHOODS))
    raise ValueError(
        f"likelihood is {likelihood!r}: expected one of {choices}, Huber(...), StudentT(...) or Categorical(...)"
    )
