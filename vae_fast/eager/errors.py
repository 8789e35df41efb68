"""The likelihoods of an error alone, output - target: nll and derivatives, as `eager.likelihoods` wants them."""

import math

import torch

from vae_fast.eager.elementary import LOG2_E, MINUS_ONE, TWO, as_scalar, is_at_hand, sign

FLAT = 20.0  # from here on tanh is 1, and log cosh d is |d| - log 2, to all digits of float64


def mse_terms(params, target, out=None):
    yield torch.sub(params[0], target, out=out).square_()


def mse_derivatives(params, target, outs):
    return (torch.sub(params[0], target, out=outs[0]),)


def mse_total(params, target, outs, sums):
    error = torch.sub(params[0], target, out=outs[0])
    return sums.of_squares(error), (error,)


def l1_terms(params, target, out=None):
    yield torch.sub(params[0], target, out=out).abs_()


def l1_derivatives(params, target, outs):
    return (sign(torch.sub(params[0], target, out=outs[0])),)


def l1_total(params, target, outs, sums):
    error = torch.sub(params[0], target, out=outs[0])
    total = sums.of(error.abs())
    return total, (error.sign_() if is_at_hand(error) and total.isfinite() else sign(error),)


def log_cosh_terms(params, target, out=None):
    yield _log_cosh(torch.sub(params[0], target, out=out).abs_())[0]


def log_cosh_derivatives(params, target, outs):
    return (torch.sub(params[0], target, out=outs[0]).tanh_(),)


def log_cosh_both(params, target, outs):
    error = torch.sub(params[0], target, out=outs[0])
    nll, t = _log_cosh(error.abs())
    half = torch.addcmul(t, t, t, value=0.5)  # tanh is (t + t^2 / 2) / (1 + t + t^2 / 2)
    return nll, (torch.copysign(half.div_(half + 1), error, out=error),)


def _log_cosh(size):
    """(log cosh |d| in new memory, t = exp(|d|) - 1 as far as `FLAT`); `size` is lost.

    cosh - 1 is t^2 / (2 t + 2), of which nothing cancels. Where t would overflow the other of two lower bounds has long
    met it.
    """
    t = torch.clamp(size, max=FLAT).expm1_()
    nll = (t * t).div_(torch.add(TWO[t.dtype], t, alpha=2)).log1p_()
    return torch.maximum(nll, size.sub_(math.log(2)), out=nll), t


def log_cosh_total(params, target, outs, sums):
    """With q = 1 + exp(-2 |d|): |d| - log 2 + log q, if float32 bears what cancels, and sign(d) (2 - q) / q.

    It does where |d| is log 2 or more on the mean: log cosh, which is convex, is then 0.22 or more. The sum of these
    logarithms is that of products, which take no time. exp(-2 |d|) - 1 gives the slope with all its digits, in half the
    time of tanh.
    """
    if target.dtype == torch.float64:
        nll, slopes = log_cosh_both(params, target, outs)
        return sums.of(nll), slopes
    error = torch.sub(params[0], target, out=outs[0])
    size = error.abs()
    linear = sums.of(size - math.log(2))  # each less that, or the rounding of a large sum would count
    if not (is_at_hand(error) and linear.item() >= 0):
        return _small_log_cosh_total(error, size, sums)
    excess = size.mul_(-2).expm1_()
    q = excess + 2
    slope = torch.copysign(excess.div_(q), error, out=error)
    return linear + sums.of_logs(q), (slope,)


def _small_log_cosh_total(error, size, sums):
    """As `log_cosh_total`, with half of that q in float64, where it cancels to 1e-16."""
    size = size.double()
    q = torch.add(MINUS_ONE[size.dtype], size, alpha=-2 * LOG2_E).exp2_().add_(0.5)
    total = sums.of(size)
    slope = torch.reciprocal(q, out=size).sub_(1).to(error.dtype)  # before the logarithms, which may take q's memory
    return (total + sums.of_logs(q)).to(error.dtype), (torch.copysign(slope, error, out=error),)


def huber_terms(params, target, out=None):
    """With c = min(|d|, delta): c (|d| - c / 2)."""
    size = torch.sub(params[0], target, out=out).abs_()
    clipped = torch.minimum(size, as_scalar(params[1]))
    yield size.sub_(clipped, alpha=0.5).mul_(clipped)


def huber_derivatives(params, target, outs):
    return _clipped(torch.sub(params[0], target, out=outs[0]), params[1], outs[0]), None


def huber_total(params, target, outs, sums):
    error = torch.sub(params[0], target)
    clipped = _clipped(error, params[1], outs[0])
    return sums.of(error.sub_(clipped, alpha=0.5).mul_(clipped)), (clipped, None)


def _clipped(error, delta, out):
    delta = as_scalar(delta)
    if is_at_hand(error):  # one pass
        return torch.clamp(error, -delta.item(), delta.item(), out=out)
    return torch.minimum(error, delta, out=out).maximum(-delta)
