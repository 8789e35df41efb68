"""The table of likelihoods: what each is called and where it stands in the three rooms."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Likelihood:
    """A row of the table. The three rooms hold its formulas in `likelihoods.py`, under `name`.

    parameters: the names of its parameter tensors; `mean` maps them to the mean of the target, `domain` says which
    targets it is for.
    """

    name: str
    parameters: tuple[str, ...]
    domain: str
    mean: Callable[..., torch.Tensor]


LIKELIHOODS = {
    row.name: row
    for row in (
        Likelihood("bernoulli", ("logits",), "[0, 1]", torch.sigmoid),
        Likelihood("mse", ("output",), "real", lambda output: output),
        Likelihood("gaussian", ("mean", "logvar"), "real", lambda mean, logvar: mean),
    )
}


def lookup(likelihood):
    """The row of `likelihood`. Raises ValueError, naming the choices, for an unknown one."""
    try:
        return LIKELIHOODS[likelihood]
    except (KeyError, TypeError):
        choices = ", ".join(map(repr, LIKELIHOODS))
        raise ValueError(f"likelihood is {likelihood!r}: expected one of {choices}") from None
