"""Whole training steps: the models, the losses as users and as vae_fast compute them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae_fast import VAE
from vae_fast.benchmarks import peers
from vae_fast.benchmarks.usual import FORMULAS

LEARNING_RATE = 1e-3


def _mlp() -> VAE:
    """That of pytorch/examples: 784-400-20-400-784."""
    return VAE((784,), 20, (400,))


def _conv() -> VAE:
    """Four convolutions of stride 2 each way, as in PyTorch-VAE's VanillaVAE, without batch normalisation."""
    widths, latents = (3, 32, 64, 128, 256), 128
    down = [(nn.Conv2d(a, b, 4, 2, 1), nn.ReLU()) for a, b in pairwise(widths)]
    up = [(nn.ReLU(), nn.ConvTranspose2d(b, a, 4, 2, 1)) for a, b in pairwise(widths)]
    encoder = nn.Sequential(*(m for pair in down for m in pair), nn.Flatten(), nn.Linear(256 * 16, 2 * latents))
    decoder = nn.Sequential(
        nn.Linear(latents, 256 * 16), nn.Unflatten(1, (256, 4, 4)), *(m for pair in reversed(up) for m in pair)
    )
    return VAE(encoder=encoder, decoder=decoder, latent_dim=latents)


def usual_loss(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """The negative ELBO of a batch at this noise, nats per sample, as users write it."""
    mu, logvar = model.encoder(x).chunk(2, dim=1)
    output = model.decoder(mu + torch.exp(0.5 * logvar) * eps)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (FORMULAS[model.likelihood](output, x) + model.beta * kl) / len(x)


def eager_loss(model: VAE, x: Tensor) -> Tensor:
    """With noise drawn for the step."""
    return usual_loss(model, x, torch.randn(len(x), *model.latent_shape, device=x.device))


def fused_loss(model: VAE, x: Tensor, eps: Tensor | None = None) -> Tensor:
    """The loss as `vae_fast` computes it, at this noise or at some drawn for the step."""
    return model.loss(x, eps=eps).total


def noiseless_loss(model: VAE, x: Tensor) -> Tensor:
    """At z = mu."""
    return usual_loss(model, x, x.new_zeros(len(x), *model.latent_shape))


def adam(model: nn.Module, captured: bool) -> torch.optim.Optimizer:
    """Adam as users make it; `capturable` keeps its step count on the device, as a graph needs."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, capturable=captured)


def quieten(model: VAE) -> VAE:
    """Fix logvar at -30, where z is mu to seven digits: a step's result no longer depends on the noise it draws."""
    last = [layer for layer in model.encoder.modules() if isinstance(layer, nn.Linear)][-1]
    half = last.out_features // 2
    with torch.no_grad():
        last.weight[half:] = 0
        last.bias[half:] = -30
    return model


def _images(shape: tuple[int, ...], device: torch.device, seed: int) -> Tensor:
    """Numbers in [0, 1]."""
    return torch.rand(shape, device=device, generator=torch.Generator(device).manual_seed(seed))


@dataclass(frozen=True)
class Step:
    """A model, the batch that it is trained on, and its loss as users compute it and with vae_fast.

    draw: (shape, device, seed) -> a batch. quieten: the model, which it changes so that a step does not depend on the
    noise it draws; exact: the loss of such a model. project: whose step it is, patched for `fused`; None for ours.
    """

    shape: tuple[int, ...]
    model: Callable[[], nn.Module]
    why: str
    quick: bool = False
    draw: Callable[..., Tensor] = _images
    eager: Callable[[nn.Module, Tensor], Tensor] = eager_loss
    fused: Callable[[nn.Module, Tensor], Tensor] = fused_loss
    quieten: Callable[[nn.Module], nn.Module] = quieten
    exact: Callable[[nn.Module, Tensor], Tensor] = noiseless_loss
    project: str | None = None


def _of_project(project: str, shape, why: str, model, draw, loss, quieten) -> Step:
    return Step(shape, model, why, False, draw, loss, loss, quieten, loss, project)


STEPS = {
    "step_mlp": Step((128, 784), _mlp, "the MLP VAE of pytorch/examples: bound by launches", quick=True),
    "step_conv": Step((256, 3, 64, 64), _conv, "a convolutional VAE: the network outweighs the loss"),
    "step_scvi": _of_project(
        "scvi", (128, 2000), "scvi-tools' VAE on its synthetic data, zinb: its defaults, of 2000 genes",
        peers.scvi_model, peers.scvi_batch, peers.scvi_loss, peers.quieten_scvi,
    ),
    "step_diffusers": _of_project(
        "diffusers", (8, 3, 32, 32), "a small AutoencoderKL of diffusers: the network outweighs the loss",
        peers.diffusers_model, _images, peers.diffusers_loss, peers.quieten_diffusers,
    ),
}  # fmt: skip


def build_model(op: str, device: torch.device) -> nn.Module:
    """The step's model, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return STEPS[op].model().to(device)


def draw_batch(case, device: torch.device, seed: int = 0) -> Tensor:
    return STEPS[case.op].draw(case.shape, device, seed)


def training_step(model: nn.Module, loss: Callable, optimizer: torch.optim.Optimizer) -> Callable[..., Tensor]:
    """A function of a batch, and what else the loss takes, that trains the model on it and returns the loss."""

    def step(*batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(model, *batch)
        value.backward()
        optimizer.step()
        return value.detach()

    return step
