"""One training step with the fused losses against the same step in eager PyTorch, interleaved in one run."""

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import ContinuousBernoulli, Laplace, Poisson, StudentT

from vae_fast.models import VAE

ROUNDS = 200
WARM_UP = 20
SECONDS = 20  # after which a slow machine goes no further, but through the warm-up and a few rounds
FEWEST = 5


def _log_nb_positive(mean, theta, x, eps=1e-8):
    """As scvi-tools writes it."""
    log_total = torch.log(theta + mean + eps)
    return (
        theta * (torch.log(theta + eps) - log_total)
        + x * (torch.log(mean + eps) - log_total)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def _log_zinb_positive(mean, theta, pi_logits, x, eps=1e-8):
    """As scvi-tools writes it."""
    log_theta = torch.log(theta + eps)
    log_total = torch.log(theta + mean + eps)
    log_zero = -pi_logits + theta * (log_theta - log_total)
    softplus_pi = F.softplus(-pi_logits)
    zero = F.softplus(log_zero) - softplus_pi
    other = _log_nb_positive(mean, theta, x, eps) - softplus_pi - pi_logits
    return torch.where(x < eps, zero, other)


def _discretized_logistic(mean, log_scale, x):
    """As PixelCNN++ and vdvae write it, on [0, 1]."""
    inverse, centred = torch.exp(-log_scale), x - mean
    upper, lower = inverse * (centred + 1 / 510), inverse * (centred - 1 / 510)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    first, last = upper - F.softplus(upper), -F.softplus(lower)
    middle = inverse * centred
    density = middle - log_scale - 2 * F.softplus(middle) - math.log(255)
    inner = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    return torch.where(x < 1 / 510, first, torch.where(x > 1 - 1 / 510, last, inner))


# What a user would write: each sums over everything. A likelihood that is not here is not compared. Losses that want
# one dtype get the target's: in mixed precision that is the float32 which autocast, or its user, casts to.
FORMULAS: dict[str, Callable[..., Tensor]] = {
    "bernoulli_probs": lambda output, x: F.binary_cross_entropy(output.to(x.dtype), x, reduction="sum"),
    "continuous_bernoulli": lambda output, x: (
        -ContinuousBernoulli(logits=output, validate_args=False).log_prob(x).sum()
    ),
    "l1": lambda output, x: F.l1_loss(output, x, reduction="sum"),
    "log_cosh": lambda output, x: torch.log(torch.cosh(output - x)).sum(),
    "huber": lambda output, x: F.huber_loss(output.to(x.dtype), x, reduction="sum"),
    "student_t": lambda output, x: -StudentT(5.0, output[0], output[1].exp(), False).log_prob(x).sum(),
    "laplace": lambda output, x: -Laplace(output[0], output[1].exp(), validate_args=False).log_prob(x).sum(),
    "discretized_logistic": lambda output, x: -_discretized_logistic(*output, x).sum(),
    "poisson": lambda output, x: -Poisson(output.exp(), validate_args=False).log_prob(x).sum(),
    "negative_binomial": lambda output, x: -_log_nb_positive(*output, x).sum(),
    "zero_inflated_negative_binomial": lambda output, x: -_log_zinb_positive(*output, x).sum(),
    "bernoulli": lambda output, x: F.binary_cross_entropy_with_logits(output, x, reduction="sum"),
    "mse": lambda output, x: F.mse_loss(output.to(x.dtype), x, reduction="sum"),
    "gaussian": lambda output, x: F.gaussian_nll_loss(
        output[0], x, output[1].exp(), full=True, eps=0.0, reduction="sum"
    ),
    "categorical": lambda output, x: F.cross_entropy(output.flatten(0, -2), x.flatten(), reduction="sum"),
}


class Timing(NamedTuple):
    """One contender: median ms of a training step (forward, backward, Adam), and its first loss in nats per sample."""

    name: str
    milliseconds: float
    loss: float


def compare(model: VAE, data: Tensor, batch_size: int, learning_rate: float, rounds: int = ROUNDS) -> list[Timing]:
    """Time training steps of two copies of `model`, which take turns on the same batches of `data` with the same noise.

    Both start from the model's weights: their losses there agree to rounding if both are right, and drift apart after
    many steps. Returns the fused contender first; an empty list where there is no eager formula for the likelihood.
    """
    if model.likelihood not in FORMULAS:
        return []
    losses, steps = {"fused": fused_loss, "eager PyTorch": eager_loss}, {}
    for name, loss in losses.items():
        twin = copy.deepcopy(model)
        steps[name] = training_step(twin, loss, torch.optim.Adam(twin.parameters(), lr=learning_rate))
    milliseconds: dict[str, list[float]] = {name: [] for name in steps}
    first: dict[str, Tensor] = {}
    deadline = time.perf_counter() + SECONDS
    for number in range(WARM_UP + rounds):
        if number >= WARM_UP + FEWEST and time.perf_counter() > deadline:
            break
        batch = data[torch.arange(number * batch_size, (number + 1) * batch_size, device=data.device) % len(data)]
        with torch.no_grad():
            eps = torch.randn_like(model.encoder(batch).chunk(2, dim=1)[0])
        # Whoever goes second finds the batch in the cache: they take turns at that too.
        for name in sorted(steps, reverse=number % 2 == 1):
            spent, loss = _time(steps[name], batch, eps)
            milliseconds[name].append(spent)
            first.setdefault(name, loss)
    medians = {name: statistics.median(times[WARM_UP:]) for name, times in milliseconds.items()}
    return [Timing(name, medians[name], first[name].item()) for name in steps]


def fused_loss(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """The loss as `vae_fast` computes it."""
    return model.loss(x, eps=eps).total


def eager_loss(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """The same loss as formulas on tensors, differentiated by autograd."""
    mu, logvar = model.encoder(x).chunk(2, dim=1)
    output = model.decoder(mu + torch.exp(0.5 * logvar) * eps)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (FORMULAS[model.likelihood](output, x) + model.beta * kl) / len(x)


def training_step(model: nn.Module, loss: Callable, optimizer: torch.optim.Optimizer) -> Callable[..., Tensor]:
    """A function of a batch, and what else the loss takes, that trains the model on it and returns the loss."""

    def step(*batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(model, *batch)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def _time(step: Callable[[Tensor, Tensor], Tensor], x: Tensor, eps: Tensor) -> tuple[float, Tensor]:
    """Milliseconds of one step, until the device has done it, and its loss."""
    synchronize = torch.cuda.synchronize if x.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    loss = step(x, eps)
    synchronize()
    return 1e3 * (time.perf_counter() - start), loss
