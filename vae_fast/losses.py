"""The losses as modules: the functions' options are set once, and calls look like those of torch.nn's losses."""

import torch
from torch import Tensor, nn

from vae_fast import checks, likelihoods, objectives, outputs, scales, targets
from vae_fast.eager.elementary import is_compiling_calls
from vae_fast.functional import ELBO, elbo_loss, gaussian_kl, reconstruction_loss
from vae_fast.likelihoods import LikelihoodLike
from vae_fast.scales import ScaleLike
from vae_fast.schedules import Schedule


class GaussianKL(nn.Module):
    """`gaussian_kl` as a module: forward(mu, logvar, prior=None) in nats, per sample by default.

    >>> GaussianKL()(torch.zeros(4, 2), torch.zeros(4, 2)).item()
    0.0
    """

    def __init__(
        self,
        *,
        logvar_clamp: tuple[float, float] | None = None,
        scale: ScaleLike = "logvar",
        reduction: str = "batchmean",
    ):
        super().__init__()
        checks.clamp(logvar_clamp)
        scales.lookup(scale, logvar_clamp)
        checks.choice("reduction", reduction, checks.LATENT_REDUCTIONS)
        self.logvar_clamp, self.scale, self.reduction = logvar_clamp, scale, reduction

    def forward(self, mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None = None) -> Tensor:
        options = {"logvar_clamp": self.logvar_clamp, "scale": self.scale, "reduction": self.reduction}
        return gaussian_kl(mu, logvar, prior=prior, **options)

    def extra_repr(self) -> str:
        options = f"logvar_clamp={self.logvar_clamp}, reduction={self.reduction!r}"
        return options if self.scale == "logvar" else f"{options}, scale={self.scale!r}"


class ReconstructionLoss(nn.Module):
    """`reconstruction_loss` as a module: forward(output, target) in nats, per sample by default.

    forward also takes `weight` and `seed` by name, as `reconstruction_loss` does.

    >>> ReconstructionLoss("mse")(torch.zeros(2, 3), torch.ones(2, 3)).item()
    3.0
    """

    def __init__(
        self,
        likelihood: LikelihoodLike = "bernoulli",
        *,
        reduction: str = "batchmean",
        target_scale: float | None = None,
        binarize: bool = False,
    ):
        super().__init__()
        checks.choice("reduction", reduction, checks.REDUCTIONS)
        _check_target_options(likelihood, target_scale, binarize)
        self.likelihood, self.reduction = likelihood, reduction
        self.target_scale, self.binarize = target_scale, binarize

    def forward(
        self,
        output: Tensor | tuple[Tensor, ...],
        target: Tensor,
        *,
        weight: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        return reconstruction_loss(
            output, target, self.likelihood, reduction=self.reduction,
            target_scale=self.target_scale, weight=weight, binarize=self.binarize, seed=seed,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.likelihood!r}, reduction={self.reduction!r}{_target_options_repr(self)}"


class ELBOLoss(nn.Module):
    """`elbo_loss` as a module: forward(output, target, kl) gives ELBO(total, reconstruction, kl) in nats per sample.

    forward also takes `weight` and `seed` by name, as `elbo_loss` does.

    Args:
        likelihood, target_scale, binarize: as in `reconstruction_loss`.
        beta: the weight of the kl: a number, a 0-d tensor, or a schedule. A number or tensor is an attribute that may
            be set between steps.
        free_bits: the floor of `vae_fast.free_bits`, for each `free_bits_per`: "sample", with kl [B] or 0-d, or
            "latent", with kl [D, ...], from reduction="latent": its shape does not always tell it from [B].
        capacity: the capacity of `vae_fast.capacity`, with kl [B] or 0-d. Not together with free_bits.

    The total is reconstruction + beta * kl, where free_bits and capacity replace the kl by what their function makes of
    it. The kl returned is always the KL itself, per sample: neither weighted nor replaced.

    Each of the three may be made a schedule: `LinearWarmup`, `Cyclical`, `Constant`, or any callable from the number of
    steps taken, an int64 0-d tensor, to a number or a 0-d tensor. A module made with one counts the steps in the buffer
    `step`: it is in `state_dict()`, so training resumes where it was, and `to(device)` moves it to where the target is.
    forward does not count, since it may run several times a step, and in evaluation: call `advance()` after each step
    of the optimizer. The weight is made on the device from `step`: torch.compile compiles once for all steps, and a
    CUDA graph reads the step at each replay.

    Raises:
        TypeError, ValueError: when made, an argument is not as above; when called, as `elbo_loss`, `free_bits` and
            `capacity`.

    >>> ELBOLoss(beta=4.0)(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor(1.0)).total.item()
    6.0794...
    >>> loss = ELBOLoss(beta=LinearWarmup(steps=10))
    >>> for _ in range(5):
    ...     total = loss(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor(1.0)).total
    ...     loss.advance()
    >>> total.item()  # 3 log 2 + 0.4
    2.4794...
    >>> loss.state_dict()["step"]
    tensor(5)
    """

    def __init__(
        self,
        likelihood: LikelihoodLike = "bernoulli",
        *,
        beta: float | Tensor | Schedule = 1.0,
        free_bits: float | Tensor | Schedule | None = None,
        free_bits_per: str = "sample",
        capacity: float | Tensor | Schedule | None = None,
        target_scale: float | None = None,
        binarize: bool = False,
    ):
        super().__init__()
        _check_target_options(likelihood, target_scale, binarize)
        checks.choice("free_bits_per", free_bits_per, checks.FREE_BITS_PER)
        if free_bits is not None and capacity is not None:
            raise ValueError("free_bits and capacity were given: expected at most one of them")
        _check_scalar("beta", beta)
        for name, value in (("free_bits", free_bits), ("capacity", capacity)):
            if value is not None:
                _check_scalar(name, value)
        self.likelihood, self.free_bits_per = likelihood, free_bits_per
        self.target_scale, self.binarize = target_scale, binarize
        self.beta, self.free_bits, self.capacity = beta, free_bits, capacity
        scheduled = any(callable(value) for value in (beta, free_bits, capacity))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64) if scheduled else None)

    def forward(
        self,
        output: Tensor | tuple[Tensor, ...],
        target: Tensor,
        kl: Tensor,
        *,
        weight: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> ELBO:
        options = {"weight": weight, "seed": seed, "target_scale": self.target_scale, "binarize": self.binarize}
        options |= {"likelihood": self.likelihood, "beta": self._now(self.beta)}
        if self.free_bits is None and self.capacity is None:
            return elbo_loss(output, target, kl, **options)
        outputs.check(output, target, likelihoods.lookup(self.likelihood))  # before anything is computed
        losses = elbo_loss(output, target, self._objective(kl, target), **options)
        reported = kl.sum() if self._per_latent else kl.mean()
        return ELBO(losses.total, losses.reconstruction, reported.to(losses.kl.dtype))

    def advance(self) -> None:
        """Count one step: the next call of the module uses the schedule's next value. Nothing without a schedule.

        Call it outside what torch.compile(mode="reduce-overhead") compiles: there the step would be the result of a
        CUDA graph, which the next replay overwrites.
        """
        if self.step is None:
            return
        if is_compiling_calls():
            # A compiled backward may recompute the weight from `step`, and must not find the next one there:
            # github.com/pytorch/pytorch/pull/197039. A program of torch.export would lose the new tensor.
            self.step = self.step + 1
        else:
            self.step.add_(1)  # in place, where a CUDA graph reads it

    @property
    def _per_latent(self):
        return self.free_bits is not None and self.free_bits_per == "latent"

    def _objective(self, kl, target):
        """What takes the kl's place in the total: [B] or 0-d."""
        if not self._per_latent:
            checks.kl(kl, target)
        name = "capacity" if self.free_bits is None else "free_bits"
        nats = self._now(getattr(self, name))
        checks.scalar(name, nats, "target", target)
        if name == "capacity":
            return objectives.capacity(kl, nats)
        return objectives.free_bits(kl, nats, per=self.free_bits_per)

    def _now(self, value):
        if not callable(value):
            return value
        if self.step is None:
            raise ValueError("a schedule was set on an ELBOLoss made without one: it counts no steps, make a new one")
        return value(self.step)

    def extra_repr(self) -> str:
        options = f"{self.likelihood!r}, beta={self.beta}"
        if self.free_bits is not None:
            options += f", free_bits={self.free_bits}, free_bits_per={self.free_bits_per!r}"
        if self.capacity is not None:
            options += f", capacity={self.capacity}"
        return options + _target_options_repr(self)


def _check_target_options(likelihood, target_scale, binarize):
    row = likelihoods.lookup(likelihood)
    if target_scale is not None:
        checks.number("target_scale", target_scale)
    targets.check_binarize(binarize, row)


def _target_options_repr(module):
    """Those that are not the default."""
    options = "" if module.target_scale is None else f", target_scale={module.target_scale}"
    return f"{options}, binarize=True" if module.binarize else options


def _check_scalar(name, value):
    """A number, or what only a call can check: a tensor or a schedule."""
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}: expected a schedule made of it")
    if not callable(value) and not isinstance(value, Tensor):
        checks.number(name, value, "a number or a 0-d tensor")
