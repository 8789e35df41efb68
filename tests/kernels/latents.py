"""Posteriors of many layouts, and the latent op held against the reference: values and gradients."""

from dataclasses import dataclass

import numpy as np
import torch

from tests.support.tolerance import NOISE, ROUNDING, assert_close, assert_loss_close, assert_z_close
from tests.support.ulp import to_numpy
from vae_fast.ops.backend import choose
from vae_fast.reference import gaussian, noise, reductions

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
REDUCTIONS = ["none", "sample", "latent", "sum", "mean", "batchmean"]


def apart(*shape):
    return lambda draw: (draw(*shape), draw(*shape))


def halves(*shape, dim, memory_format=torch.contiguous_format):
    return lambda draw: draw(*shape).to(memory_format=memory_format).chunk(2, dim)


def in_format(*shape, memory_format):
    return lambda draw: tuple(draw(*shape).to(memory_format=memory_format) for _ in range(2))


def batch_innermost(*shape):
    return lambda draw: tuple(draw(*shape[1:], shape[0]).movedim(-1, 0) for _ in range(2))


LAYOUTS = {
    "the smallest": apart(1, 1),
    "a batch alone": apart(7),  # one latent a sample, without a dimension for it
    "full tiles": apart(64, 32),  # no mask at all
    "primes": apart(257, 31),  # every tail is masked, and no row of whole quads
    "odd": apart(5, 3, 7),
    "rows of 20": apart(9, 20),  # begin with an access of 16 bytes, and Triton is told
    "images": apart(2, 4, 6, 6),
    "channels_last images": in_format(2, 4, 6, 6, memory_format=torch.channels_last),
    "the longest row of one program": apart(3, 4096),  # tiling.MAX_COLUMNS
    "rows split over programs": apart(2, 4100),
    "one long row": apart(1, 5001),
    "chunk(2, 1)": halves(6, 24, dim=1),  # rows with a stride
    "chunk(2, -1)": halves(3, 4, 12, dim=-1),
    "chunk(2, 1) of images": halves(2, 6, 5, 5, dim=1),
    "chunk(2, 1) of channels_last images": halves(2, 6, 5, 5, dim=1, memory_format=torch.channels_last),
    "the batch innermost": batch_innermost(6, 3, 4),  # whole quads of columns, which are apart in z's memory
    "two layouts": lambda draw: (draw(4, 3, 6), draw(6, 4, 3).permute(1, 2, 0)),
    "an expanded mu": lambda draw: (draw(4, 1, 5).expand(4, 3, 5), draw(4, 3, 5)),
    "unaligned": lambda draw: (draw(4 * 32 + 1)[1:].view(4, 32), draw(4 * 32 + 3)[3:].view(4, 32)),
}


@dataclass
class Posterior:
    """mu and logvar, both with gradients; `prior` is None or a pair of tensors that expand to their shape."""

    mu: torch.Tensor
    logvar: torch.Tensor
    prior: tuple | None = None

    @property
    def inputs(self):
        return (self.mu, self.logvar, *(self.prior or ()))


def drawer(device, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)


def posterior(layout, backend, dtype=torch.float32, prior=None):
    """prior: None, or the shape of its tensors."""
    draw = drawer(backend.device, dtype)
    pair = [t.detach().requires_grad_() for t in LAYOUTS[layout](draw)]
    if prior is not None:
        prior = tuple((0.5 * draw(*prior)).requires_grad_() for _ in range(2))
    return Posterior(*pair, prior)


def reference_eps(like, seed):
    """The noise of `seed` for the elements of z, which lie in memory as those of empty_like(like) do."""
    flat = torch.from_numpy(noise.normal(seed, like.numel()))
    return flat.as_strided(like.shape, torch.empty_like(like, device="meta").stride()).numpy()


def like_output(output, seed=9):
    """Random upstream gradients of the output's shape and dtype."""
    return drawer(output.device, output.dtype, seed)(*output.shape)


def check(p, z, kl, *, clamp=None, seed=None, eps=None, reduction=None, grads=torch.autograd.grad):
    """Hold z, kl (either may be None) and their gradients for random upstream gradients against the reference."""
    grad_z, grad_kl = (None if out is None else like_output(out) for out in (z, kl))
    oracle = Oracle(p, clamp, seed, eps, reduction, grad_z, grad_kl)
    if z is not None:
        oracle.check_z(z)
    if kl is not None:
        oracle.check_kl(kl)
    outputs, upstream = zip(*((out, grad) for out, grad in ((z, grad_z), (kl, grad_kl)) if out is not None))
    oracle.check_grads(grads(outputs, p.inputs, upstream))


class Oracle:
    """The reference's results for a posterior, with the size of the terms that they are sums of."""

    def __init__(self, p, clamp, seed, eps, reduction, grad_z, grad_kl):
        self.p, self.reduction, self.seeded = p, reduction, seed is not None
        self.mu, raw = to_numpy(p.mu), to_numpy(p.logvar)
        self.logvar = raw if clamp is None else np.clip(raw, *clamp)
        self.through = 1.0 if clamp is None else (raw >= clamp[0]) & (raw <= clamp[1])  # the clamp's gradient
        self.eps = reference_eps(p.mu, seed) if self.seeded else None if eps is None else to_numpy(eps)
        self.prior = None if p.prior is None else tuple(map(to_numpy, p.prior))
        options = {"prior": self.prior, "eps": self.eps, "clamp": clamp}
        self.z, self.kl = gaussian.forward(self.mu, raw, **options, reduction=reduction)
        upstream = [None if g is None else to_numpy(g) for g in (grad_z, grad_kl)]
        self.grads = gaussian.backward(*upstream, self.mu, raw, **options, reduction=reduction)
        self.grad_z = np.zeros_like(self.mu) if grad_z is None else upstream[0]
        kl = np.zeros(()) if grad_kl is None else upstream[1]
        self.grad_kl = np.broadcast_to(0.0, self.mu.shape)
        if grad_kl is not None:
            self.grad_kl = reductions.expand(kl, self.mu.shape, reduction)

    def check_z(self, z):
        if self.seeded:
            assert_z_close(z, self.mu, self.logvar, self.eps, self.z)
        else:
            terms = np.abs(self.mu) + np.exp(self.logvar / 2) * np.abs(self.eps)
            assert_close(z, self.z, terms=terms, exponent=self.logvar)

    def check_kl(self, kl):
        assert kl.dtype == (torch.float64 if self.p.mu.dtype == torch.float64 else torch.float32)
        if self.reduction == "none":
            assert_close(kl, self.kl, exponent=self.exponent)
        else:
            assert_loss_close(kl, self.kl, self.kl)  # every term is positive

    @property
    def exponent(self):
        _, prior_logvar = self._prior()
        exponent = np.maximum(np.abs(self.logvar), np.abs(self.logvar - prior_logvar)) + np.abs(prior_logvar)
        return np.where(np.isfinite(exponent), exponent, 0.0)

    def check_grads(self, grads):
        for grad, oracle, terms, atol, input in zip(grads, self.grads, *self._terms(), self.p.inputs, strict=False):
            assert grad.dtype == input.dtype
            # autograd adds the gradients of an expanded prior, each rounded to its dtype
            sums = np.shape(terms) != np.shape(oracle)
            exponent = self.exponent
            if sums:
                terms, exponent = sum_to(terms, oracle.shape), exponent.max()
                atol = 2 * torch.finfo(grad.dtype).eps * terms
            assert_close(grad, oracle, terms=terms, exponent=exponent, atol=atol)

    @np.errstate(over="ignore", invalid="ignore")
    def _terms(self):
        """For each gradient: the sum of its absolute terms, and what the noise may differ by."""
        prior_mu, prior_logvar = self._prior()
        shift, precision, g = np.abs(self.mu - prior_mu), np.exp(-prior_logvar), np.abs(self.grad_kl)
        excess = np.abs(np.expm1(self.logvar - prior_logvar))
        sums = self.reduction in ("sample", "sum", "mean", "batchmean")
        if sums and choose(self.p.mu) == "eager":  # may round exp(x) before the 1 goes
            excess += ROUNDING * np.exp(self.logvar - prior_logvar)
        slope = np.abs(self.grad_z) * np.exp(self.logvar / 2) / 2 * self.through
        from_z = slope * (0 if self.eps is None else np.abs(self.eps))
        terms = (
            np.abs(self.grad_z) + g * shift * precision,
            from_z + g * excess / 2 * self.through,
            g * shift * precision,
            g * (excess + shift**2 * precision) / 2,
        )
        none = np.zeros_like(slope)
        terms = (np.where(np.isfinite(t), t, 0.0) for t in terms)
        return terms, (none, NOISE * slope if self.seeded else none, none, none)

    def _prior(self):
        prior = (0.0, 0.0) if self.prior is None else self.prior
        return tuple(np.broadcast_to(value, self.mu.shape) for value in prior)


def sum_to(array, shape):
    """The sum over the dimensions that broadcasting from `shape` adds or stretches."""
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    return array.sum(axis=tuple(k for k, size in enumerate(shape) if size == 1), keepdims=True)
