"""Likelihoods with shared parameters in many layouts, held against the reference: values and gradients."""

import numpy as np
import torch

from tests.kernels import domains
from tests.kernels.latents import like_output, sum_to
from tests.support.tolerance import assert_close, assert_loss_close
from tests.support.ulp import to_numpy
from vae_fast import elbo_loss, reconstruction_loss
from vae_fast.reference import reductions, targets


def contiguous(tensor):
    return tensor


def channels_last(tensor):
    return tensor.to(memory_format=torch.channels_last)


def chunk(tensor):
    return torch.cat([tensor, tensor], 1).chunk(2, 1)[1]


def batch_innermost(tensor):
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


# name -> (the first parameter's shape, that of the others, the layout of the first and of the target)
LAYOUTS = {
    "one number": ((67, 129), (), contiguous),
    "one number, as a tensor of many dimensions": ((2, 3, 5, 7), (1, 1, 1, 1), contiguous),
    "one number, full tiles": ((8, 1024), (1,), contiguous),
    "one number, rows with a stride": ((5, 129), (), chunk),
    "one number, long samples": ((2, 4099), (), contiguous),
    "one number, one element a sample": ((7,), (), contiguous),
    "features": ((67, 129), (129,), contiguous),
    "features, full tiles": ((64, 128), (1, 128), contiguous),
    "features, more than a tile's rows": ((2, 4099), (4099,), contiguous),
    "features, rows with a stride": ((37, 12), (12,), chunk),
    "features, the batch innermost": ((33, 6), (6,), batch_innermost),
    "the last of three dimensions": ((3, 5, 7), (7,), contiguous),
    "the middle of three dimensions": ((3, 5, 7), (5, 1), contiguous),
    "channels of 16 x 16": ((5, 3, 16, 16), (3, 1, 1), contiguous),
    "channels of 8 x 8, full tiles": ((32, 4, 8, 8), (4, 1, 1), contiguous),
    "channels of 33 x 32": ((4, 2, 33, 32), (2, 1, 1), contiguous),  # 32 columns of a run are a group
    "channels of 32 x 96": ((3, 2, 32, 96), (2, 1, 1), contiguous),  # whole tiles within a run, and rows that are none
    "channels of 7 x 7": ((5, 3, 7, 7), (3, 1, 1), contiguous),
    "channels of one long image": ((1, 2, 80, 80), (2, 1, 1), contiguous),
    "channels, channels_last": ((5, 3, 8, 9), (3, 1, 1), channels_last),
    "channels, chunks": ((5, 3, 4, 6), (1, 3, 1, 1), chunk),
    "channels, the batch innermost": ((5, 3, 4, 6), (3, 1, 1), batch_innermost),
    "rows of images": ((5, 3, 4, 6), (4, 1), contiguous),
    # what autograd sums
    "samples": ((67, 9), (67, 1), contiguous),
    "samples of full tiles": ((67, 8), (67, 1), contiguous),
    "samples of one element": ((7,), (7,), contiguous),
    "two dimensions": ((5, 3, 4, 6), (3, 4, 1), contiguous),
    "as many as the elements": ((1, 9), (9,), contiguous),
}


class Case:
    """The parameters, all with gradients, those beyond the first shared; and a target and weight of its shape."""

    def __init__(self, layout, backend, likelihood="gaussian", dtype=torch.float32, weight=None):
        shape, shared, place = LAYOUTS[layout]
        self.likelihood, self.weight = likelihood, weight and weight(shape).to(backend.device)
        values, x = domains.draw(likelihood, shape, dtype)
        others, _ = domains.draw(likelihood, shared or (1,), dtype, seed=1)
        values = [place(values[0].to(backend.device)), *(v.view(shared).to(backend.device) for v in others[1:])]
        self.params = [v.detach().requires_grad_() for v in values]
        self.target = place(x.to(backend.device))

    def loss(self, reduction="batchmean"):
        output, options = tuple(self.params), {"reduction": reduction, "weight": self.weight}
        return reconstruction_loss(output, self.target, self.likelihood, **options)

    def elbo(self, kl, beta):
        return elbo_loss(tuple(self.params), self.target, kl, likelihood=self.likelihood, beta=beta, weight=self.weight)

    def oracle(self):
        """(nll, derivatives, their terms) of each element, and the exponent."""
        whole = np.broadcast_arrays(*(to_numpy(p) for p in self.params))
        nll, derivatives, terms, sizes, exponent = domains.oracle(self.likelihood, whole, to_numpy(self.target))
        if self.weight is not None:
            weight = np.broadcast_to(to_numpy(self.weight), nll.shape)
            nll, terms, *both = (targets.weighted(v, weight) for v in (nll, terms, *derivatives, *sizes))
            derivatives, sizes = both[: len(derivatives)], both[len(derivatives) :]
        return nll, derivatives, terms, sizes, exponent

    def check(self, loss, reduction):
        """The loss, and its gradients for a random upstream gradient."""
        nll, _, terms, _, exponent = self.oracle()
        expected, terms = (reductions.reduce(value, reduction) for value in (nll, terms))
        if reduction == "none":
            assert_close(loss, expected, terms=terms, exponent=exponent)
        else:
            assert_loss_close(loss, expected, terms)
        upstream = like_output(loss)
        grads = torch.autograd.grad(loss, self.params, upstream)
        self.check_grads(grads, reductions.expand(to_numpy(upstream), nll.shape, reduction))

    def check_grads(self, grads, upstream):
        """upstream: of each element's nll."""
        _, derivatives, _, sizes, exponent = self.oracle()
        for grad, param, derivative, size in zip(grads, self.params, derivatives, sizes, strict=True):
            assert (grad.dtype, grad.shape) == (param.dtype, param.shape)
            expected, terms = (sum_to(v, param.shape) for v in (upstream * derivative, np.abs(upstream) * size))
            # made in forward for an upstream gradient of 1, bfloat16 is rounded a second time
            atol = torch.finfo(grad.dtype).eps * np.abs(expected) if grad.dtype == torch.bfloat16 else 0.0
            assert_close(grad, expected, terms=terms, exponent=np.max(exponent, initial=0.0), atol=atol)
