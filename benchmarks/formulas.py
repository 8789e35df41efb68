"""What is compared: each op as users write it, as vae_fast computes it, and the fewest bytes that it must move.

A likelihood of `LIKELIHOODS` is compared once it has a formula in `usual.FORMULAS` and its domain a line in `TARGETS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, sample_kl, sample_kl_packed, use_backend
from vae_fast.benchmarks.usual import FORMULAS
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.reference import likelihoods as reference

CLAMP = (-30.0, 20.0)  # that of diffusers
WHOLE_LOSS = "bernoulli"  # the likelihood of the case "loss"
NUMPY_ELEMENTS = 2**20

# A target in each domain of `LIKELIHOODS`, for parameters of a shape.
TARGETS: dict[str, Callable[..., Tensor]] = {
    "[0, 1]": torch.rand,
    "real": torch.randn,
    # geometric: many zeros, and 20 at most, because bfloat16 draws a 0
    "counts": lambda shape, **options: torch.rand(shape, **options).clamp_(min=1e-3).log_().mul_(-3).floor_(),
    "classes": lambda shape, **options: torch.randint(shape[-1], shape[:-1], **options),
}


class Inputs(NamedTuple):
    """One set of tensors.

    leaves: what the network gives, and takes the gradients of; upstream: the gradient that comes back for each output,
    None for that of a scalar loss, which is 1.
    """

    leaves: tuple[Tensor, ...]
    target: Tensor | None
    upstream: tuple[Tensor | None, ...]

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (*self.leaves, self.target, *self.upstream) if t is not None]


@dataclass(frozen=True)
class Op:
    """An op and its two spellings, each called as (leaves, target, noise) -> outputs.

    noise: eps for `eager`, a seed for `fused`; None where it is to be drawn, as in training.
    inputs: (case, draw) -> Inputs, where draw(function, shape, dtype) makes a random tensor.
    floor: case -> the fewest bytes of each phase, for which the vectors [B] and the seed do not count.
    oracle: what results are held against, as `eager` but in float64; None for eager itself.
    latents: case -> the shape of the noise, None where there is none.
    drawn: (leaves, outputs) -> the noise in float32, read back from the sample.
    averages: the scalar output is a mean over the batch; otherwise a sum.
    """

    eager: Callable
    fused: Callable
    inputs: Callable
    floor: Callable
    oracle: Callable | None = None
    latents: Callable = lambda case: None
    drawn: Callable | None = None
    averages: bool = False


def _eager_sample_kl(leaves, target, eps):
    """As in PyTorch-VAE, models/vanilla_vae.py, and pythae."""
    mu, logvar = leaves
    std = torch.exp(0.5 * logvar)
    z = mu + std * (torch.randn_like(std) if eps is None else eps)
    return z, -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp(), dim=1)


def _fused_sample_kl(leaves, target, seed):
    return sample_kl(*leaves, seed=seed)


def _eager_packed(leaves, target, eps):
    """As in diffusers, DiagonalGaussianDistribution: __init__, sample and kl."""
    mean, logvar = torch.chunk(leaves[0], 2, dim=1)
    logvar = torch.clamp(logvar, *CLAMP)
    std, var = torch.exp(0.5 * logvar), torch.exp(logvar)
    z = mean + std * (torch.randn_like(std) if eps is None else eps)
    return z, 0.5 * torch.sum(torch.pow(mean, 2) + var - 1.0 - logvar, dim=[1, 2, 3])


def _fused_packed(leaves, target, seed):
    return sample_kl_packed(*leaves, logvar_clamp=CLAMP, seed=seed)


def _eager_kl(leaves, target, eps):
    """As in pytorch/examples, vae/main.py."""
    mu, logvar = leaves
    return (-0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()),)


def _fused_kl(leaves, target, seed):
    return (gaussian_kl(*leaves, reduction="sum"),)


def _moments(case, draw, shape):
    """mu ~ N(0, 1) and logvar ~ N(-1, 1/4), side by side along dimension 1."""
    mu, logvar = draw(torch.randn, shape, case.dtype), draw(torch.randn, shape, case.dtype)
    return torch.cat((mu, logvar.div_(2).sub_(1)), dim=1)


def _halves(case, draw):
    return tuple(half.contiguous() for half in _moments(case, draw, case.shape).chunk(2, dim=1))


def _sampled(case, draw, shape):
    """Upstream gradients of z and of the kl [B]."""
    return draw(torch.randn, shape, case.dtype), draw(torch.rand, shape[:1], torch.float32)


def _noise_of(z, mu, logvar):
    return (z.float() - mu.detach().float()) / torch.exp(0.5 * logvar.detach().float())


def _noise_of_packed(z, moments):
    """CLAMP is far from the moments that are drawn."""
    return _noise_of(z, *moments.chunk(2, dim=1))


def _latent_floor(case):
    size = case.elements * case.dtype.itemsize
    return {"forward": 3 * size, "backward": 5 * size, "forward+backward": 8 * size}


def _kl_floor(case):
    """A scalar's gradient can be made where mu and logvar are read: two reads and two writes in all."""
    size = case.elements * case.dtype.itemsize
    return {"forward": 2 * size, "backward": 4 * size, "forward+backward": 4 * size}


def as_output(parameters):
    """Parameters of a likelihood as a decoder gives them: a tensor, or a tuple of several."""
    return parameters[0] if len(parameters) == 1 else tuple(parameters)


def _parameters(case, draw, name):
    row = LIKELIHOODS[name]
    return row.linked([draw(torch.randn, case.shape, case.dtype) for _ in row.parameters])


def _target(case, draw, name):
    return draw(TARGETS[LIKELIHOODS[name].domain], case.shape, case.target_dtype)


def target_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """That of a target beside parameters of `dtype`, where nothing else is asked for."""
    return torch.int64 if LIKELIHOODS[name].domain == "classes" else dtype


def _reconstruction_floor(case, name):
    """(2p + 1)N elements, of K classes 2NK + N; how a contender divides them between the phases is its own affair."""
    row = LIKELIHOODS[name]
    parameters = len(row.parameters) * case.elements * case.dtype.itemsize
    targets = case.elements // (case.shape[-1] if row.domain == "classes" else 1)
    return {"forward+backward": 2 * parameters + targets * case.target_dtype.itemsize}


class _Reference(torch.autograd.Function):
    """The NumPy reference's nll."""

    @staticmethod
    def forward(ctx, name, target, *params):
        arrays = [t.cpu().numpy() for t in (*params, target)]
        nll, ctx.derivatives = getattr(reference, name)(*arrays)
        return target.new_tensor(nll.sum())

    @staticmethod
    def backward(ctx, grad):
        return None, None, *(grad * grad.new_tensor(derivative) for derivative in ctx.derivatives)


def _exact(name, leaves, target):
    """The nll in float64; formulas that people write have lost their digits there too.

    Of many elements on a GPU it is that of the eager room, which the tests hold against NumPy: here NumPy would take
    minutes of a host while the GPU waits.
    """
    if target.is_cuda and leaves[0].numel() > NUMPY_ELEMENTS:
        classes = LIKELIHOODS[name].domain == "classes"
        with use_backend("eager"):
            return reconstruction_loss(as_output(leaves), target.long() if classes else target, name, reduction="sum")
    return _Reference.apply(name, target, *leaves)


def _reconstruction(name):
    return Op(
        eager=lambda leaves, target, eps: (FORMULAS[name](as_output(leaves), target),),
        oracle=lambda leaves, target, eps: (_exact(name, leaves, target),),
        fused=lambda leaves, target, seed: (reconstruction_loss(as_output(leaves), target, name, reduction="sum"),),
        inputs=lambda case, draw: Inputs(_parameters(case, draw, name), _target(case, draw, name), (None,)),
        floor=lambda case: _reconstruction_floor(case, name),
    )


def _eager_loss(leaves, target, eps):
    """The negative ELBO per sample, and z, whose gradient comes back from the decoder."""
    mu, logvar = leaves[0].chunk(2, dim=1)
    std = torch.exp(0.5 * logvar)
    z = mu + std * (torch.randn_like(std) if eps is None else eps)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (FORMULAS[WHOLE_LOSS](as_output(leaves[1:]), target) + kl) / len(target), z


def _fused_loss(leaves, target, seed):
    z, kl = sample_kl_packed(leaves[0], seed=seed)
    return elbo_loss(as_output(leaves[1:]), target, kl, likelihood=WHOLE_LOSS).total, z


def _loss_inputs(case, draw):
    shape = (case.shape[0], case.latents)
    leaves = _moments(case, draw, shape), *_parameters(case, draw, WHOLE_LOSS)
    return Inputs(leaves, _target(case, draw, WHOLE_LOSS), (None, _sampled(case, draw, shape)[0]))


def _loss_floor(case):
    latents = 8 * case.shape[0] * case.latents * case.dtype.itemsize
    return {"forward+backward": latents + _reconstruction_floor(case, WHOLE_LOSS)["forward+backward"]}


OPS: dict[str, Op] = {
    "sample_kl": Op(
        _eager_sample_kl, _fused_sample_kl,
        inputs=lambda case, draw: Inputs(_halves(case, draw), None, _sampled(case, draw, case.shape)),
        floor=_latent_floor, latents=lambda case: case.shape,
        drawn=lambda leaves, outputs: _noise_of(outputs[0], *leaves),
    ),
    "sample_kl_packed": Op(
        _eager_packed, _fused_packed,
        inputs=lambda case, draw: Inputs(
            (_moments(case, draw, case.shape),), None, _sampled(case, draw, case.shape)
        ),
        floor=_latent_floor, latents=lambda case: case.shape,
        drawn=lambda leaves, outputs: _noise_of_packed(outputs[0], *leaves),
    ),
    "kl": Op(
        _eager_kl, _fused_kl, inputs=lambda case, draw: Inputs(_halves(case, draw), None, (None,)), floor=_kl_floor
    ),
    **{
        name: _reconstruction(name)
        for name, row in LIKELIHOODS.items()
        if name in FORMULAS and row.domain in TARGETS
    },
    "loss": Op(
        _eager_loss, _fused_loss, _loss_inputs, _loss_floor,
        latents=lambda case: (case.shape[0], case.latents), averages=True,
        drawn=lambda leaves, outputs: _noise_of_packed(outputs[1], leaves[0]),
    ),
}  # fmt: skip


def draw_inputs(case, device, seed=0):
    """One set of tensors of the case; another seed gives another set."""
    generator = torch.Generator(device).manual_seed(seed)
    made = OPS[case.op].inputs(
        case, lambda function, shape, dtype: function(shape, dtype=dtype, device=device, generator=generator)
    )
    return made._replace(leaves=tuple(leaf.requires_grad_() for leaf in made.leaves))
