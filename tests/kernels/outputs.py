"""Decoder outputs of many layouts, and the reconstruction loss held against the reference: values and gradients."""

import numpy as np
import torch

from tests.kernels import domains
from tests.kernels.latents import drawer, like_output
from tests.support.tolerance import assert_close, assert_loss_close
from tests.support.ulp import to_numpy
from vae_fast import reconstruction_loss
from vae_fast.reference import likelihoods, reductions, targets

LIKELIHOODS = {"bernoulli": 1, "mse": 1, "gaussian": 2}  # name -> number of parameter tensors
INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
REDUCTIONS = ["none", "sample", "sum", "mean", "batchmean"]


def alike(*shape):
    return lambda draw, p: [draw(*shape) for _ in range(p)] + [draw(*shape)]


def parts(*shape, dim, memory_format=torch.contiguous_format):
    """The parameters are chunks of one tensor; the target lies apart."""

    def make(draw, p):
        whole = draw(*shape[:dim], p * shape[dim], *shape[dim + 1 :]).to(memory_format=memory_format)
        return [*whole.chunk(p, dim), draw(*shape)]

    return make


def in_format(*shape, output, target):
    return lambda draw, p: (
        [draw(*shape).to(memory_format=output) for _ in range(p)] + [draw(*shape).to(memory_format=target)]
    )


LAYOUTS = {
    "the smallest": alike(1, 1),
    "a batch alone": alike(5),
    "MNIST": alike(3, 784),  # not a multiple of any tile
    "images of MNIST": alike(2, 1, 28, 28),
    "primes": alike(257, 31),  # every tail is masked
    "rows of 20": alike(9, 20),  # begin with an access of 16 bytes, and Triton is told
    "full tiles": alike(4, 1024),  # no mask at all, flat or by rows
    "the longest row of one program": alike(2, 4096),  # tiling.MAX_COLUMNS
    "rows split over programs": alike(2, 4099),
    "one long row": alike(1, 5001),
    "chunks of images": parts(2, 3, 5, 7, dim=1),
    "chunks of the last dimension": parts(3, 4, 6, dim=2),
    "channels_last": in_format(2, 3, 5, 4, output=torch.channels_last, target=torch.channels_last),
    "channels_last output": in_format(2, 3, 5, 4, output=torch.channels_last, target=torch.contiguous_format),
    "channels_last target": in_format(2, 3, 5, 4, output=torch.contiguous_format, target=torch.channels_last),
    "the batch innermost": lambda draw, p: [draw(4, 3, 6).movedim(-1, 0) for _ in range(p + 1)],  # whole quads, apart
    "an expanded target": lambda draw, p: [draw(4, 3, 5) for _ in range(p)] + [draw(3, 1).expand(4, 3, 5)],
    "an expanded parameter": lambda draw, p: [draw(4, 1, 5).expand(4, 3, 5) for _ in range(p)] + [draw(4, 3, 5)],
    "unaligned": lambda draw, p: [draw(4 * 32 + 1)[1:].view(4, 32) for _ in range(p)] + [draw(131)[3:].view(4, 32)],
}


WEIGHTS = {  # as the arguments (target, draw) of what users give
    "per sample": lambda x, draw: draw(len(x)).abs(),
    "per sample, as a column": lambda x, draw: draw(len(x), *(1 for _ in x.shape[1:])).bfloat16(),
    "a mask": lambda x, draw: draw(*x.shape) > 0,
    "elementwise": lambda x, draw: draw(*x.shape).half().relu(),
    "elementwise, in another layout": lambda x, draw: draw(*reversed(x.shape)).permute(*reversed(range(x.dim()))),
    "shared by samples": lambda x, draw: draw(1, *x.shape[1:]).double(),
    "a mask of the last dimension": lambda x, draw: draw(*(1 for _ in x.shape[1:]), x.shape[-1]) > 0,
    "a mask of images": lambda x, draw: draw(*x.shape[:1], *(1 for _ in x.shape[1:2]), *x.shape[2:]) > 0,
    "one number": lambda x, draw: draw(*(1 for _ in x.shape)).abs() + 1,
}


class Case:
    """A likelihood's parameters, all with gradients, a target, and the loss's `options`."""

    def __init__(self, layout, likelihood, backend, dtype=torch.float32, target_dtype=None, weight=None, **options):
        *params, target = LAYOUTS[layout](drawer(backend.device, dtype), LIKELIHOODS[likelihood])
        self.likelihood = likelihood
        self.params = [t.detach().requires_grad_() for t in params]
        target = target.sigmoid() if likelihood == "bernoulli" else target
        self.target = _as_dtype(target, target_dtype or dtype)
        weight = weight and WEIGHTS[weight](target, drawer(backend.device, torch.float32, seed=9))
        self.options = options if weight is None else {"weight": weight, **options}

    def loss(self, reduction="batchmean"):
        return reconstruction_loss(self.output, self.target, self.likelihood, reduction=reduction, **self.options)

    @property
    def output(self):
        return self.params[0] if len(self.params) == 1 else tuple(self.params)

    def check(self, loss, reduction):
        """Hold the loss and its gradients for a random upstream gradient against the reference."""
        oracle = self.oracle()
        double = self.params[0].dtype == torch.float64
        assert loss.dtype == (torch.float64 if double else torch.float32)
        expected, terms = (reductions.reduce(value, reduction) for value in (oracle.nll, oracle.terms))
        if reduction == "none":
            assert_close(loss, expected, terms=terms, exponent=oracle.exponent)
        else:
            assert_loss_close(loss, expected, terms)
        upstream = like_output(loss)
        grads = torch.autograd.grad(loss, self.params, upstream)
        upstream = reductions.expand(to_numpy(upstream), oracle.nll.shape, reduction)
        self.check_grads(grads, oracle, upstream, scaled=reduction not in ("none", "sample"))

    def check_grads(self, grads, oracle, upstream, scaled=True):
        """scaled: the gradients, made in forward for an upstream gradient of 1, may have been rounded a second time."""
        for grad, param, derivative, terms in zip(grads, self.params, oracle.derivatives, oracle.derivative_terms):
            assert grad.dtype == param.dtype
            expected, terms = upstream * derivative, np.abs(upstream) * terms
            twice = scaled and grad.dtype == torch.bfloat16
            atol = torch.finfo(grad.dtype).eps * np.abs(expected) if twice else 0.0
            assert_close(grad, expected, terms=terms, exponent=oracle.exponent, atol=atol)

    def oracle(self):
        return Oracle(self.likelihood, self.params, self.target, **self.options)


def _as_dtype(target, dtype):
    """Integers of every size that occurs: bytes from 0 to 255, other integers from -25 to 25."""
    if dtype == torch.uint8:
        return (target * 100).abs().clamp(max=255).to(dtype)
    if dtype in INTEGERS:
        return (target * 5).to(dtype)
    return target.to(dtype)


class Oracle:
    """The reference's nll of each element and its derivatives, with the sum of the absolute terms of each."""

    def __init__(self, likelihood, params, target, weight=None, target_scale=None, binarize=False, seed=None):
        dtype = torch.float64 if params[0].dtype == torch.float64 else torch.float32
        scale = target_scale or (1 / 255 if target.dtype == torch.uint8 else 1)
        x = to_numpy(target.to(dtype) * scale)  # arithmetic is in the params' precision
        if binarize:
            x = sample(target, seed, scale, params[0])
        values = [to_numpy(p) for p in params]
        self.nll, self.derivatives = getattr(likelihoods, likelihood)(*values, x)
        self.exponent = np.zeros_like(x)
        with np.errstate(over="ignore", invalid="ignore"):
            if likelihood == "bernoulli":
                a = values[0]
                self.exponent = np.abs(a)
                self.terms = np.maximum(a, 0) + np.abs(a * x) + np.log1p(np.exp(-np.abs(a)))
                self.derivative_terms = (np.abs(self.derivatives[0] + x) + np.abs(x),)
            elif likelihood == "mse":
                self.terms, self.derivative_terms = self.nll, (np.abs(self.derivatives[0]),)
            else:
                self.exponent = np.abs(values[1])
                square = (values[0] - x) ** 2 * np.exp(-values[1])
                self.terms = (np.abs(values[1]) + square + np.log(2 * np.pi)) / 2
                self.derivative_terms = (np.abs(self.derivatives[0]), (1 + square) / 2)
        if scale != 1 and not binarize:
            rounding = domains.rounding_of_product(likelihood, values, x)
            self.terms, *self.derivative_terms = np.add([self.terms, *self.derivative_terms], rounding)
        if weight is not None:
            weight = to_numpy(weight.to(dtype))
            self.nll, *self.derivatives = (targets.weighted(v, weight) for v in (self.nll, *self.derivatives))
            parts = (self.terms, *self.derivative_terms)
            self.terms, *self.derivative_terms = (targets.weighted(v, np.abs(weight)) for v in parts)


def sample(target, seed, scale, like):
    """The reference's sample of the target, in the order of the memory of a sample of `like`."""
    strides = torch.empty_like(like).stride()
    order = sorted(range(target.dim()), key=lambda d: -strides[d])
    drawn = targets.binarize(to_numpy(target.permute(order)), seed, scale)
    return drawn.transpose(np.argsort(order))
