"""How the second tensor of a Gaussian gives its standard deviation: a name, or a frozen dataclass where it has numbers.

The posterior and the prior share one scale. The formulas are in `scales.py` of each of the three rooms.
"""

from dataclasses import dataclass
from typing import NamedTuple

from vae_fast import checks


class Scale(NamedTuple):
    """What the ops take: plain values, which a raw op's schema can hold."""

    name: str
    bound: float = 0.0
    epsilon: float = 0.0


@dataclass(frozen=True)
class Softplus:
    """std = log(1 + exp(v)) + epsilon, as in RAVE, Stable Audio and diffusers' Oobleck.

    >>> gaussian_kl(torch.zeros(1, 1), torch.zeros(1, 1), scale=Softplus(0.0)).item()  # std = log 2
    0.10673...
    """

    epsilon: float = 1e-4

    def __post_init__(self):
        object.__setattr__(self, "epsilon", checks.number("epsilon", self.epsilon))


@dataclass(frozen=True)
class SoftClamp:
    """mean = bound tanh(mu / bound), std = exp(bound tanh(v / bound)) + epsilon (NVAE, Vahdat & Kautz 2020).

    NVAE's code has bound 5 and epsilon 0.01. It bounds both tensors: hence a scale of its own, not an option of others.

    >>> gaussian_kl(torch.full((1, 1), 1e4), torch.zeros(1, 1), scale=SoftClamp(5.0)).item()
    12.5
    """

    bound: float = 5.0
    epsilon: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "bound", checks.positive("bound", self.bound))
        object.__setattr__(self, "epsilon", checks.number("epsilon", self.epsilon))


NAMES = ("logvar", "logstd", "std", "softplus")
ScaleLike = str | Softplus | SoftClamp  # what `lookup` takes


def lookup(scale, logvar_clamp=None):
    """The `Scale` of a name or a dataclass.

    Raises ValueError, naming the choices, for anything else, and for a clamp where `logvar` holds no log-variances.
    """
    found = _named(scale)
    if logvar_clamp is not None and found.name != "logvar":
        raise ValueError(f"logvar_clamp was given with scale {scale!r}: expected scale 'logvar', or no clamp")
    return found


def _named(scale):
    # Numbers are written out: torch.compile(dynamic=True) would make inputs of those in a table, and fail when the next
    # call has others.
    if isinstance(scale, Softplus):
        return Scale("softplus", 0.0, scale.epsilon)
    if isinstance(scale, SoftClamp):
        return Scale("soft_clamp", scale.bound, scale.epsilon)
    if isinstance(scale, str):
        for name in NAMES:
            if scale == name:
                return Scale(name, 0.0, 1e-4 if name == "softplus" else 0.0)
    choices = ", ".join(map(repr, NAMES))
    raise ValueError(f"scale is {scale!r}: expected one of {choices}, a Softplus or a SoftClamp")
