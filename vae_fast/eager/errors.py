"""The likelihoods of an error alone, output - target: nll and derivatives, as `eager.likelihoods` wants them."""

import math

import torch

from vae_fast.eager.elementary import LOG2_E, MINUS_ONE, as_scalar, is_at_hand, select, sign


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
    size = torch.sub(params[0], target, out=out).abs_()
    yield _wide_log_cosh(size) if size.dtype == torch.float64 else _log_cosh(size)[0]


def log_cosh_derivatives(params, target, outs):
    return (torch.sub(params[0], target, out=outs[0]).tanh_(),)


def log_cosh_both(params, target, outs):
    error = torch.sub(params[0], target, out=outs[0])
    size = error.abs()
    if size.dtype == torch.float64:
        return _wide_log_cosh(size), (error.tanh_(),)
    nll, q = _log_cosh(size)
    return nll, (_log_cosh_slope(error, q, q),)


def _wide_log_cosh(size):
    """log1p(cosh - 1) below 1, where the other form cancels."""
    small = torch.sinh(size * 0.5).square_().mul_(2).log1p_()
    return select(size < 1, small, torch.exp(-2 * size).log1p_().add_(size).sub_(math.log(2)))


def _log_cosh(size):
    """(|d| + log q in float32, q) with q = (1 + exp(-2 |d|)) / 2 in float64, where that cancels to 1e-16."""
    size = size.double()
    q = _half_of_sum(size)
    return size.add_(q.log()).clamp_(min=0).float(), q


def _half_of_sum(size):
    return torch.add(MINUS_ONE[size.dtype], size, alpha=-2 * LOG2_E).exp2_().add_(0.5)


def _log_cosh_slope(error, q, scratch):
    """sign(d) (1 / q - 1), in the error's memory."""
    slope = torch.reciprocal(q, out=scratch).sub_(1).to(error.dtype)
    return torch.copysign(slope, error, out=error)


def log_cosh_total(params, target, outs, sums):
    """With q = 1 + exp(-2 |d|): |d| + log q - log 2, if float32 bears what cancels, and sign(d) (2 - q) / q.

    exp(-2 |d|) - 1 gives the slope with all its digits, in half the time of tanh.
    """
    if target.dtype == torch.float64:
        return sum(map(sums.of, log_cosh_terms(params, target))), log_cosh_derivatives(params, target, outs)
    error = torch.sub(params[0], target, out=outs[0])
    size = error.abs()
    linear, count = sums.of(size).double(), sums.of_ones(size)
    if not (is_at_hand(error) and linear.item() >= float(count) >= 0):
        return _small_log_cosh_total(error, size, sums)
    excess = size.mul_(-2).expm1_()
    q = excess + 2
    slope = torch.copysign(excess.div_(q), error, out=error)
    total = linear + sums.of_logs(q) - math.log(2) * count
    return total.to(error.dtype), (slope,)


def _small_log_cosh_total(error, size, sums):
    size = size.double()
    q = _half_of_sum(size)
    total = sums.of(size)
    slope = _log_cosh_slope(error, q, size)  # before the logarithms, which may take q's memory
    return (total + sums.of_logs(q)).to(error.dtype), (slope,)


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
