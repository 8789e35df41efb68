"""The likelihoods: their nll in nats and its derivatives, element by element.

Both write where they are told, because a pass over memory that is in the cache costs a fraction of one that is not.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from vae_fast.eager import counts, errors, special
from vae_fast.eager.elementary import ONE, as_scalar, exp_minus, is_at_hand, select, sign

LEAST_BERNOULLI = 2**-6  # mean nll of a sum whose small terms may be rounded beside 1, or beside a large logit
EACH, SUM = 0, 2  # of the ops behind torch.nn.functional, which itself broadcasts first, and again in backward


class Formulas(NamedTuple):
    """terms(params, target, out) yields tensors that add up to the nll, one after the other in `out` (None: new ones).

    derivatives(params, target, outs) returns one tensor a parameter, in `outs` where that is not None.
    total(params, target, outs, sums), where the two share work, returns (the nll's sum, the derivatives): see
    `targets.Sums`.
    native(output, target, SUM, *constants) is PyTorch's own op, for at most `most` float32 elements a thread: there,
    its autograd costs less than a Function's host time. With EACH for any number, as forward then makes no gradient;
    but where it has a `least` only for what is summed afterwards, if that is a mean nll of so much.
    native_weighted(output, target, weight, SUM or EACH) is one that takes a weight, of four times as many.
    both(params, target, outs), where they share most of the work, returns (the nll, the derivatives).
    factor, beside no `both`, is left out of the derivatives: it joins the upstream gradient's pass over them.
    """

    terms: Callable
    derivatives: Callable
    total: Callable | None = None
    native: Callable | None = None
    most: int = 0
    least: float | None = None
    native_weighted: Callable | None = None
    both: Callable | None = None
    factor: float = 1.0


def _bernoulli_terms(params, target, out=None):
    logit = params[0]
    yield torch.clamp(logit, min=0, out=out).addcmul_(logit, target, value=-1)
    size = torch.abs(logit, out=out)
    yield exp_minus(size, size).log1p_()


def _bernoulli_derivatives(params, target, outs):
    return (torch.sigmoid(params[0], out=outs[0]).sub_(target),)


def _bernoulli_total(params, target, outs, sums):
    """log1p(exp(-|a|)) is -log max(s, 1 - s) with s = sigmoid(a), and a sum of logarithms is that of a product.

    Where the total is small, what 1 - s has lost is too much of it.
    """
    sigmoid = torch.sigmoid(params[0], out=outs[0])
    linear = sums.of(torch.clamp(params[0], min=0).addcmul_(params[0], target, value=-1))
    larger = torch.rsub(sigmoid, ONE[sigmoid.dtype])
    torch.maximum(larger, sigmoid, out=larger)
    total = linear - sums.of_logs(larger)
    if is_at_hand(total) and total.item() < LEAST_BERNOULLI * float(sums.of_ones(sigmoid)):
        total = linear + sums.of(exp_minus(params[0].abs()).log1p_())
    return total, (sigmoid.sub_(target),)


def _native_bernoulli(output, target, reduction):
    return _native_weighted_bernoulli(output, target, None, reduction)


def _native_weighted_bernoulli(output, target, weight, reduction):
    return torch.binary_cross_entropy_with_logits(output, target, weight, None, reduction)


def _gaussian_terms(params, target, out=None):
    mean, logvar = params
    error = torch.sub(mean, target, out=out)
    yield torch.exp(-logvar).mul_(error).mul_(error).mul_(0.5)  # the error's square alone may overflow
    yield torch.add(logvar, math.log(2 * math.pi), out=out).mul_(0.5)


def _gaussian_parts(params, target, outs):
    """The error over the variance, and its square: where told."""
    error = torch.sub(params[0], target, out=outs[1])
    scaled = exp_minus(params[1], outs[0]).mul_(error)
    return scaled, error.mul_(scaled)


def _gaussian_slopes(scaled, excess):
    return scaled, excess.sub_(1).mul_(-0.5)


def _gaussian_derivatives(params, target, outs):
    return _gaussian_slopes(*_gaussian_parts(params, target, outs))


def _gaussian_total(params, target, outs, sums):
    scaled, excess = _gaussian_parts(params, target, outs)
    total = sums.of(excess) + sums.of(params[1]) + math.log(2 * math.pi) * sums.of_ones(excess)
    return total.mul_(0.5), _gaussian_slopes(scaled, excess)


def _gaussian_both(params, target, outs):
    scaled, excess = _gaussian_parts(params, target, outs)
    nll = torch.add(excess, params[1]).add_(math.log(2 * math.pi)).mul_(0.5)
    return nll, _gaussian_slopes(scaled, excess)


def _bernoulli_probs_terms(params, target, out=None):
    p = params[0]
    yield torch.log(p).clamp_(min=-100).mul_(-target)
    yield torch.log1p(-p).clamp_(min=-100).mul_(target - 1)


def _bernoulli_probs_derivatives(params, target, outs):
    p = params[0]
    variance = torch.rsub(p, ONE[p.dtype]).mul_(p)  # p - p * p would lose its digits near 1
    return ((p - target).div_(variance.clamp_(min=1e-12)),)


def _continuous_bernoulli_parts(b):
    """log((1 - exp(-b)) / b), and 1 less the target's mean at b >= 0: see the reference."""
    square = b * b
    tail, slope = special.log_sinhc(square)
    rest = torch.expm1(-b).neg_()
    near = b < 1
    return (
        select(near, tail.mul_(square).sub_(b, alpha=0.5), torch.log(rest / b)),
        select(near, slope.mul_(b).neg_().add_(0.5), 1 / b - 1 / torch.expm1(b)),
    )


def _continuous_bernoulli_terms(params, target, out=None):
    a = params[0]
    yield torch.clamp(a, min=0).addcmul_(a, target, value=-1)
    yield _continuous_bernoulli_parts(a.abs())[0]


def _continuous_bernoulli_derivatives(params, target, outs):
    a = params[0]
    complement = _continuous_bernoulli_parts(a.abs())[1]
    return (select(a < 0, complement, 1 - complement).sub_(target),)


def _student_t_parts(params, target, outs=(None, None)):
    """1 / scale, the scaled error, and its square: the first two where told."""
    inverse = exp_minus(params[1], outs[0])
    scaled = torch.sub(params[0], target, out=outs[1]).mul_(inverse)
    return inverse, scaled, scaled.square()


def _student_t_terms(params, target, out=None):
    df, constant = map(as_scalar, params[2:])
    _, _, square = _student_t_parts(params, target)
    yield square.div_(df).log1p_().mul_((df + 1) / 2)
    yield params[1] + constant


def _student_t_derivatives(params, target, outs):
    return _student_t_slopes(as_scalar(params[2]), *_student_t_parts(params, target, outs[:2]))


def _student_t_slopes(df, inverse, scaled, square):
    share = torch.div(df + 1, square + df)
    return inverse.mul_(scaled).mul_(share), square.mul_(share).neg_().add_(1), None, None


def _student_t_total(params, target, outs, sums):
    df, constant = map(as_scalar, params[2:])
    parts = _student_t_parts(params, target, outs[:2])
    logs = sums.of(torch.div(parts[-1], df).log1p_())
    total = logs * (df + 1) / 2 + sums.of(params[1]) + constant * sums.of_ones(target)
    return total, _student_t_slopes(df, *parts)


def _laplace_terms(params, target, out=None):
    mean, log_scale = params
    yield torch.sub(mean, target, out=out).abs_().mul_(torch.exp(-log_scale))
    yield torch.add(log_scale, math.log(2), out=out)


def _laplace_parts(params, target, outs):
    """The error and 1 / scale, where told, and the scaled error's size."""
    error = torch.sub(params[0], target, out=outs[1])
    inverse = exp_minus(params[1], outs[0])
    return error, inverse, torch.abs(error).mul_(inverse)


def _laplace_slopes(error, inverse, scaled):
    return inverse.mul_(sign(error)), torch.rsub(scaled, ONE[scaled.dtype])


def _laplace_derivatives(params, target, outs):
    return _laplace_slopes(*_laplace_parts(params, target, outs))


def _laplace_total(params, target, outs, sums):
    parts = _laplace_parts(params, target, outs)
    total = sums.of(parts[-1]) + sums.of(params[1]) + math.log(2) * sums.of_ones(target)
    return total, _laplace_slopes(*parts)


def _laplace_both(params, target, outs):
    parts = _laplace_parts(params, target, outs)
    return torch.add(parts[-1], params[1]).add_(math.log(2)), _laplace_slopes(*parts)


def _bin(params, target):
    """The bounds of the target's bin of 1/255 on the standard logistic, and which bins are the first and the last."""
    mean, log_scale = params
    inverse, centred = torch.exp(-log_scale), target - mean
    upper, lower = (centred + 1 / 510).mul_(inverse), (centred - 1 / 510).mul_(inverse)
    return inverse, upper, lower, target < 1 / 510, target > 1 - 1 / 510


def _discretized_logistic_terms(params, target, out=None):
    inverse, upper, lower, first, last = _bin(params, target)
    yield F.softplus(-upper, threshold=80).masked_fill_(last, 0)
    yield F.softplus(lower, threshold=80).masked_fill_(first, 0)
    yield torch.expm1(inverse / -255).neg_().log_().neg_().masked_fill_(first | last, 0)


def _discretized_logistic_derivatives(params, target, outs):
    inverse, upper, lower, first, last = _bin(params, target)
    below = torch.sigmoid(-upper).masked_fill_(last, 0)
    above = torch.sigmoid(lower).masked_fill_(first, 0)
    width = inverse / 255
    stretch = (width / torch.expm1(width)).masked_fill_(first | last, 0)
    return inverse * (below - above), stretch.addcmul_(upper, below).addcmul_(lower, above, value=-1)


bernoulli = Formulas(
    _bernoulli_terms,
    _bernoulli_derivatives,
    _bernoulli_total,
    _native_bernoulli,
    most=2**18,
    least=LEAST_BERNOULLI,
    native_weighted=_native_weighted_bernoulli,
)
mse = Formulas(errors.mse_terms, errors.mse_derivatives, errors.mse_total, torch._C._nn.mse_loss, 2**19, factor=2.0)
gaussian = Formulas(_gaussian_terms, _gaussian_derivatives, _gaussian_total, both=_gaussian_both)
bernoulli_probs = Formulas(_bernoulli_probs_terms, _bernoulli_probs_derivatives)
continuous_bernoulli = Formulas(_continuous_bernoulli_terms, _continuous_bernoulli_derivatives)
# Any but NaN: there the gradient of PyTorch's own op is 0.
l1 = Formulas(errors.l1_terms, errors.l1_derivatives, errors.l1_total, torch._C._nn.l1_loss, 2**19, least=0.0)
log_cosh = Formulas(
    errors.log_cosh_terms, errors.log_cosh_derivatives, errors.log_cosh_total, both=errors.log_cosh_both
)
huber = Formulas(errors.huber_terms, errors.huber_derivatives, errors.huber_total, torch._C._nn.huber_loss, 2**21)
student_t = Formulas(_student_t_terms, _student_t_derivatives, _student_t_total)
laplace = Formulas(_laplace_terms, _laplace_derivatives, _laplace_total, both=_laplace_both)
discretized_logistic = Formulas(_discretized_logistic_terms, _discretized_logistic_derivatives)
poisson = Formulas(counts.poisson_terms, counts.poisson_derivatives, both=counts.poisson_both)
negative_binomial = Formulas(
    counts.negative_binomial_terms, counts.negative_binomial_derivatives, both=counts.negative_binomial_both
)
zero_inflated_negative_binomial = Formulas(
    counts.zero_inflated_terms, counts.zero_inflated_derivatives, both=counts.zero_inflated_both
)
