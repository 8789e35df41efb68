"""Whole training steps: the models, the losses as users and as vae_fast compute them, and steps as CUDA graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae_fast import VAE
from vae_fast.app import compare

LEARNING_RATE = 1e-3
WARM_UP = 3  # steps before a capture: optimiser state, workspaces and cuDNN's plans must exist


@dataclass(frozen=True)
class Step:
    """A model, and the batch that it is trained on."""

    shape: tuple[int, ...]
    model: Callable[[], VAE]
    why: str
    quick: bool = False


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


STEPS = {
    "step_mlp": Step((128, 784), _mlp, "the MLP VAE of pytorch/examples: bound by launches", quick=True),
    "step_conv": Step((256, 3, 64, 64), _conv, "a convolutional VAE: the network outweighs the loss"),
}


def build_model(op: str, device: torch.device) -> VAE:
    """The step's model, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return STEPS[op].model().to(device)


def eager_loss(model: VAE, x: Tensor) -> Tensor:
    """As users write it, with noise drawn for the step."""
    return compare.eager_loss(model, x, torch.randn(len(x), *model.latent_shape, device=x.device))


def fused_loss(model: VAE, x: Tensor) -> Tensor:
    return model.loss(x).total


def training_step(model: VAE, loss: Callable, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(model, x)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def adam(model: VAE, captured: bool) -> torch.optim.Optimizer:
    """Adam as users make it; `capturable` keeps its step count on the device, as a graph needs."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, capturable=captured)


def capture(step: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """`step` as one CUDA graph, replayed on a copy of its batch."""
    batch = example.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step(batch)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(batch)

    def replay(x: Tensor) -> Tensor:
        batch.copy_(x)
        graph.replay()
        return loss

    return replay


def quieten(model: VAE) -> VAE:
    """Fix logvar at -30, where z is mu to seven digits: a step's result no longer depends on the noise it draws."""
    last = [layer for layer in model.encoder.modules() if isinstance(layer, nn.Linear)][-1]
    half = last.out_features // 2
    with torch.no_grad():
        last.weight[half:] = 0
        last.bias[half:] = -30
    return model


def draw_batch(case, device: torch.device, seed: int = 0) -> Tensor:
    """Images in [0, 1]."""
    return torch.rand(case.shape, device=device, generator=torch.Generator(device).manual_seed(seed))
