"""How close a result must be to a float64 oracle.

    |ours - oracle| <= 2 (largest error of eager PyTorch in that dtype) + atol + (1e-6 + 6e-8 |exponent|) sum |terms|

`terms` are the summands of the formula: a sum of large terms that cancel is allowed the rounding of those terms.
`exponent` is the argument of the formula's exp, where the GPU's exp2 loses 6e-8 of it. In float64 the factors of
`terms` shrink by 2^-29, as machine precision does. In the interpreter bfloat16, truncated, may be off by one more ulp.

NaN must be NaN; where the oracle is infinite the result must not be finite; it may overflow only where the oracle does.
"""

import numpy as np
import torch

from tests.support.environment import INTERPRETED
from tests.support.ulp import to_numpy, ulp

RELATIVE = 1e-6
RELATIVE_OF_EXPONENT = 6e-8
SLACK = 1.0  # of `terms`; a test of approximations at their worst sets another
ROUNDING = 0.1  # as a term: a rounding of 1 in float32
NOISE = 2e-6
FLOAT64 = 2.0**-29


def assert_close(actual, oracle, eager=None, *, terms=None, exponent=0.0, atol=0.0, relative=RELATIVE):
    """A value or gradient against the rule above.

    actual: tensor; oracle: float64 array of its shape; eager: the same in eager PyTorch and actual's dtype, or None,
    which stands for errors of half an ulp; terms: sum of the absolute terms of each element, by default |oracle|.

    assert_close(grad, reference_grad, eager_grad, terms=np.abs(a) + np.abs(b), exponent=logvar)
    """
    oracle = to_numpy(oracle)
    scale = FLOAT64 if actual.dtype == torch.float64 else SLACK
    factor = scale * (relative + RELATIVE_OF_EXPONENT * np.abs(to_numpy(exponent)))
    parts = {"atol": atol, "terms": factor * np.abs(oracle if terms is None else to_numpy(terms))}
    if eager is None:
        parts["1 ulp"] = ulp(oracle, actual.dtype)
    else:
        parts["2 x largest eager error"] = 2 * _largest_error(eager, oracle)
    _assert_within(actual, oracle, _with_truncation(parts, actual.dtype, oracle))


def assert_loss_close(actual, oracle, terms, *, relative=RELATIVE):
    """A reduced loss within 1e-6 of the sum of its absolute terms.

    assert_loss_close(kl, oracle.sum(1), np.abs(oracle_terms).sum(1))
    """
    scale = FLOAT64 if actual.dtype == torch.float64 else SLACK
    _assert_within(actual, to_numpy(oracle), {"terms": scale * relative * np.abs(to_numpy(terms))})


def assert_noise_close(actual, oracle):
    """Noise within 2e-6, plus half-precision rounding: it is made in float32 whatever the dtype."""
    oracle = to_numpy(oracle)
    parts = {"noise": NOISE}
    if torch.finfo(actual.dtype).bits == 16:
        parts["1 ulp"] = ulp(oracle, actual.dtype)
    _assert_within(actual, oracle, parts)


def assert_z_close(z, mu, logvar, eps, oracle=None):
    """A sample within 2e-6 s + (3e-7 + 4e-8 |logvar|) s |eps| + 2 ulp, s = exp(logvar / 2).

    logvar: after any clamp; eps: float64 noise of the reference; oracle: by default mu + s eps.
    """
    mu, logvar, eps = to_numpy(mu), to_numpy(logvar), to_numpy(eps)
    with np.errstate(over="ignore", invalid="ignore"):
        std = np.exp(logvar / 2)
        oracle = mu + std * eps if oracle is None else to_numpy(oracle)
        parts = {
            "noise": NOISE * std,
            "exp": (3e-7 + 4e-8 * np.abs(logvar)) * std * np.abs(eps),
            "2 ulp": 2 * ulp(oracle, z.dtype),
        }
    _assert_within(z, oracle, parts)


def _with_truncation(parts, dtype, oracle):
    if INTERPRETED and dtype == torch.bfloat16:
        parts["1 ulp of truncation"] = ulp(oracle, dtype)
    return parts


def _largest_error(eager, oracle):
    with np.errstate(invalid="ignore"):
        error = np.abs(to_numpy(eager) - oracle)
    return error[np.isfinite(error)].max(initial=0.0)


def _assert_within(actual, oracle, parts):
    """Fail with the worst element: where it is, both values, and what the allowed error is made of."""
    __tracebackhide__ = True
    assert tuple(actual.shape) == oracle.shape, f"shape {list(actual.shape)}, the oracle's is {list(oracle.shape)}"
    got = to_numpy(actual)
    parts = {name: np.broadcast_to(part, oracle.shape) for name, part in parts.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        allowed = sum(parts.values())
        error = np.abs(got - oracle)
        excess = np.where(_is_acceptable_non_finite(got, oracle, allowed, actual.dtype), -np.inf, error - allowed)
    excess = np.where(np.isnan(excess), np.inf, excess)
    if not excess.size or excess.max() <= 0:
        return
    worst = np.unravel_index(excess.argmax(), excess.shape)
    made_of = " + ".join(f"{part[worst]:.3g} ({name})" for name, part in parts.items())
    raise AssertionError(
        f"{(excess > 0).sum()} of {excess.size} elements are off; the worst, at {[int(i) for i in worst]}: "
        f"got {got[worst]:.9g}, oracle {oracle[worst]:.9g}, error {error[worst]:.3g}, "
        f"allowed {allowed[worst]:.3g} = {made_of}"
    )


def _is_acceptable_non_finite(got, oracle, allowed, dtype):
    """NaN for NaN, anything not finite for an infinity, and an infinity where the oracle overflows the dtype."""
    largest = torch.finfo(dtype).max
    overflows = np.isinf(got) & (np.sign(got) == np.sign(oracle)) & (np.abs(oracle) + allowed > largest)
    return (np.isnan(oracle) & np.isnan(got)) | (np.isinf(oracle) & ~np.isfinite(got)) | overflows
