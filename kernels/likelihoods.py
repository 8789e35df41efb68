"""The likelihoods: maths on loaded values, nothing else.

Each takes its parameters as a tuple and the target, and returns (base, excess, derivatives): the nll in nats of each
element is base + log1p(excess[0]), excess being a tuple of one in [0, 1], or () where there is no logarithm;
derivatives is a tuple, one a parameter. The logarithm is left to the caller because a sum needs fewer of them: log1p(a)
+ log1p(b) = log1p(a + b + ab).
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Issued(NamedTuple):
    """Instructions per element on sm_90 (make audit) of the kernel that reduces it, without `tiling.ISSUED`."""

    sum: float  # the nll summed
    gradient: float
    both: float
    each: float  # the nll of each element


ISSUED = {
    "bernoulli": Issued(sum=28, gradient=20, both=37, each=44),
    "mse": Issued(sum=8, gradient=8, both=12, each=7),
    "gaussian": Issued(sum=18, gradient=18, both=25, each=16),
}


@triton.jit
def bernoulli(params, target):
    """Bernoulli nll of `target` given logits, stable for any finite logit (Kingma & Welling 2014, appendix C.1)."""
    logit = params[0]
    e = tl.exp(-tl.abs(logit))
    sigmoid = tl.where(logit >= 0, 1.0, e) / (1.0 + e)
    return tl.maximum(logit, 0.0) - logit * target, (e,), (sigmoid - target,)


@triton.jit
def mse(params, target):
    """Squared error: the Gaussian nll at variance 1/2, less a constant."""
    error = params[0] - target
    return error * error, (), (2.0 * error,)


@triton.jit
def gaussian(params, target):
    """Gaussian nll given mean and log-variance (Kingma & Welling 2014, appendix C.2)."""
    error = params[0] - target
    scaled = error * tl.exp(-params[1])
    excess = error * scaled
    # log(2 pi) / 2 is written in place: a variable would hold it in float32.
    return 0.5 * (params[1] + excess) + 0.91893853320467274178, (), (scaled, 0.5 - 0.5 * excess)
