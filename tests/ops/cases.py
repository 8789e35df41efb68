"""Every differentiable call of the library with each of its options, as functions of float64 leaves."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from vae_fast import (
    Categorical,
    SoftClamp,
    Softplus,
    elbo_loss,
    gaussian_kl,
    reconstruction_loss,
    reparameterize,
    sample_kl,
    sample_kl_packed,
)

SHAPE = (2, 3)
SEED = -7
LATENT_REDUCTIONS = ("none", "sample", "latent", "sum", "mean", "batchmean")
REDUCTIONS = ("none", "sample", "sum", "mean", "batchmean")
PARAMETERS = {"bernoulli": 1, "mse": 1, "gaussian": 2}  # tensors that a likelihood takes


class Case(NamedTuple):
    """`call` takes leaves of `shapes` and returns a tensor or a tuple."""

    name: str
    call: Callable
    shapes: tuple

    def leaves(self, device="cpu", dtype=torch.float64, requires_grad=True, seed=0):
        """Values within (-1.5, 1.5), and never 0.5 or -0.5, where a clamp of the tests has its corner."""
        generator = torch.Generator().manual_seed(seed)
        values = [(torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5) * 3 for shape in self.shapes]
        return [v.to(device, dtype).requires_grad_(requires_grad) for v in values]


def values(*shape, device="cpu", dtype=torch.float64, seed=1):
    """Constants in (0, 1) for targets, eps and the like, made by what torch.compile can trace."""
    count = torch.Size(shape).numel()
    return ((torch.arange(1, count + 1, device=device) * 0.61803 + seed * 0.37) % 1).to(dtype).view(shape)


def tupled(result):
    return result if isinstance(result, tuple) else (result,)


def scalar(result):
    """A scalar that depends on every element of every output, with weights that differ."""
    return sum((t * (1 + i + torch.arange(t.numel(), device=t.device).view(t.shape))).sum()
               for i, t in enumerate(tupled(result)))  # fmt: skip


def _latent(name, **options):
    def call(mu, logvar):
        return sample_kl(mu, logvar, **options)

    return Case(f"sample_kl-{name}", call, (SHAPE, SHAPE))


def _with_prior(name, function, shapes=(SHAPE, SHAPE), **options):
    def call(mu, logvar, prior_mu, prior_logvar):
        return function(mu, logvar, prior=(prior_mu, prior_logvar), **options)

    return Case(name, call, (SHAPE, SHAPE, *shapes))


def _with_eps(mu, logvar):
    return sample_kl(mu, logvar, eps=values(*mu.shape, device=mu.device))


def _with_seed_tensor(mu, logvar):
    return sample_kl(mu, logvar, seed=torch.full((1,), SEED, device=mu.device))


def _clamped_sample(mu, logvar):
    return reparameterize(mu, logvar, seed=SEED, logvar_clamp=(-0.5, 0.5))


def _packed_with_prior(moments, prior_mu, prior_logvar):
    return sample_kl_packed(moments, prior=(prior_mu, prior_logvar), logvar_clamp=(-0.5, 0.5), seed=SEED)


def _in_std(mu, v, prior_mu, prior_v):
    """Leaves have both signs, standard deviations do not."""
    return sample_kl(mu, v.abs() + 0.5, prior=(prior_mu, prior_v.abs() + 0.5), scale="std", seed=SEED)


def _packed_monte_carlo(moments, prior_mu, prior_logvar):
    prior = prior_mu, prior_logvar
    return sample_kl_packed(moments, prior=prior, scale=Softplus(0.1), kl="monte_carlo", seed=SEED)


def _soft_clamped_sample(mu, v):
    return reparameterize(mu, v, seed=SEED, scale=SoftClamp(1.5))


def _gaussian_kl(reduction):
    return Case(f"gaussian_kl-{reduction}", lambda m, v: gaussian_kl(m, v, reduction=reduction), (SHAPE, SHAPE))


def _reconstruction(likelihood, reduction):
    def call(*params):
        output = params if len(params) > 1 else params[0]
        target = values(*params[0].shape, device=params[0].device)
        return reconstruction_loss(output, target, likelihood, reduction=reduction)

    return Case(f"reconstruction-{likelihood}-{reduction}", call, (SHAPE,) * PARAMETERS[likelihood])


def _shared(name, shape, reduction, likelihood="gaussian", whole=SHAPE):
    """A second parameter of a shape of its own."""

    def call(mean, second):
        target = values(*mean.shape, device=mean.device)
        return reconstruction_loss((mean, second), target, likelihood, reduction=reduction)

    return Case(f"reconstruction-{name}-{reduction}", call, (whole, shape))


def _elbo_shared(kl, mean, logvar):
    target = values(*mean.shape, device=mean.device)
    return tuple(elbo_loss((mean, logvar), target, kl, likelihood="gaussian", beta=0.5))


def _extras(name, likelihood, make, **options):
    """`make` gives the keywords that hold tensors, for a target."""

    def call(*params):
        output = params if len(params) > 1 else params[0]
        target = values(*params[0].shape, device=params[0].device)
        given = make(target)
        return reconstruction_loss(output, given.pop("target", target), likelihood, **given, **options)

    return Case(f"reconstruction-{name}", call, (SHAPE,) * PARAMETERS[likelihood])


def _of_bytes(target):
    return {"target": (target * 255).to(torch.uint8)}


def _by_sample(target):
    return {"weight": values(len(target), device=target.device, seed=3)}


def _by_mask(target):
    return {"weight": values(*target.shape, device=target.device, seed=3) > 0.3}


def _elbo_of_bytes(kl, logits):
    target = values(*logits.shape, device=logits.device)
    extras = {**_of_bytes(target), **_by_sample(target)}
    return tuple(elbo_loss(logits, kl=kl, binarize=True, seed=SEED, **extras))


def _classes(logits):
    """A class for each element, and -1."""
    count = logits.shape[:-1].numel()
    return (torch.arange(count, device=logits.device) * 7 % (logits.shape[-1] + 1) - 1).view(logits.shape[:-1])


def _categorical(reduction, likelihood, name="", make=lambda target: {}):
    """`make` as in `_extras`."""

    def call(logits):
        target = _classes(logits)
        target = target.clamp(0) if likelihood == "categorical" else target
        return reconstruction_loss(logits, target, likelihood, reduction=reduction, **make(target))

    return Case(f"reconstruction-categorical-{name}{reduction}", call, ((2, 3, 4),))


def _categorical_elbo(kl, logits):
    return tuple(elbo_loss(logits, _classes(logits), kl, likelihood=Categorical(ignore_index=-1), beta=0.5))


def _elbo(name, likelihood, kl_shape, beta=1.0):
    def call(kl, *params):
        output = params if len(params) > 1 else params[0]
        weight = beta(kl.device) if callable(beta) else beta
        target = values(*params[0].shape, device=params[0].device)
        return tuple(elbo_loss(output, target, kl, likelihood=likelihood, beta=weight))

    return Case(f"elbo-{likelihood}-{name}", call, (kl_shape, *(SHAPE,) * PARAMETERS[likelihood]))


CASES = [
    *(_latent(f"seed-{reduction}", seed=SEED, reduction=reduction) for reduction in LATENT_REDUCTIONS),
    _latent("clamp", seed=SEED, logvar_clamp=(-0.5, 0.5)),
    Case("sample_kl-eps", _with_eps, (SHAPE, SHAPE)),
    Case("sample_kl-seed_tensor", _with_seed_tensor, (SHAPE, SHAPE)),
    *(_with_prior(f"sample_kl-prior-{r}", sample_kl, seed=SEED, reduction=r) for r in ("sample", "latent", "mean")),
    _with_prior("sample_kl-prior-clamp", sample_kl, seed=SEED, logvar_clamp=(-0.5, 0.5)),
    _with_prior("sample_kl-prior_row", sample_kl, ((1, 3), (3,)), seed=SEED),  # learned and shared: expanded
    _latent("logstd", seed=SEED, scale="logstd"),
    Case("sample_kl-std-prior", _in_std, (SHAPE,) * 4),
    _with_prior("sample_kl-softplus-prior_row", sample_kl, ((1, 3), (3,)), scale="softplus", seed=SEED),
    _with_prior("sample_kl-soft_clamp-prior", sample_kl, scale=SoftClamp(1.5), seed=SEED, reduction="latent"),
    _latent("soft_clamp-epsilon", seed=SEED, scale=SoftClamp(1.5, epsilon=0.01), reduction="none"),
    *(_latent(f"monte_carlo-{r}", seed=SEED, kl="monte_carlo", reduction=r) for r in ("none", "sample", "mean")),
    _with_prior("sample_kl-monte_carlo-prior", sample_kl, kl="monte_carlo", seed=SEED, logvar_clamp=(-0.5, 0.5)),
    Case("packed-monte_carlo-prior", _packed_monte_carlo, ((2, 6), SHAPE, SHAPE)),
    *(_latent(f"samples-{kl}", seed=SEED, kl=kl, num_samples=3) for kl in ("closed_form", "monte_carlo")),
    _with_prior(
        "samples-prior_row",
        sample_kl,
        ((1, 3), (3,)),
        kl="monte_carlo",
        seed=SEED,
        num_samples=2,
        reduction="latent",
        scale="softplus",
    ),
    Case("packed-1", lambda moments: sample_kl_packed(moments, seed=SEED), ((2, 6),)),
    Case("packed-last-none", lambda t: sample_kl_packed(t, -1, seed=SEED, reduction="none"), ((2, 3, 2),)),
    Case("packed-prior-clamp", _packed_with_prior, ((2, 6), SHAPE, SHAPE)),
    Case("reparameterize", lambda m, v: reparameterize(m, v, seed=SEED), (SHAPE, SHAPE)),
    Case("reparameterize-clamp", _clamped_sample, (SHAPE, SHAPE)),
    Case("reparameterize-samples", lambda m, v: reparameterize(m, v, seed=SEED, num_samples=2), (SHAPE, SHAPE)),
    Case("reparameterize-soft_clamp", _soft_clamped_sample, (SHAPE, SHAPE)),
    *map(_gaussian_kl, LATENT_REDUCTIONS),
    _with_prior("gaussian_kl-prior", gaussian_kl),
    _with_prior("gaussian_kl-softplus-prior", gaussian_kl, scale="softplus"),
    *(_reconstruction(likelihood, reduction) for likelihood in PARAMETERS for reduction in REDUCTIONS),
    *(_shared("one_number", (), reduction) for reduction in REDUCTIONS),
    *(_shared("a_feature", SHAPE[1:], reduction, "laplace") for reduction in ("none", "sample", "batchmean")),
    *(_shared("a_channel", (3, 1, 1), reduction, whole=(2, 3, 2, 2)) for reduction in ("sample", "mean")),
    _shared("a_sample", (2, 1), "batchmean"),
    Case("elbo-one_number", _elbo_shared, (SHAPE[:1], SHAPE, ())),
    Case("elbo-a_feature", _elbo_shared, (SHAPE[:1], SHAPE, SHAPE[1:])),
    *(_extras(f"bytes-{likelihood}", likelihood, _of_bytes) for likelihood in PARAMETERS),
    *(_extras(f"weight-{likelihood}", likelihood, _by_sample) for likelihood in PARAMETERS),
    *(_extras(f"mask-{reduction}", "bernoulli", _by_mask, reduction=reduction) for reduction in REDUCTIONS),
    *(_extras(f"binarize-{r}", "bernoulli", lambda _: {}, binarize=True, seed=SEED, reduction=r) for r in REDUCTIONS),
    Case("elbo-bernoulli-extras", _elbo_of_bytes, (SHAPE[:1], SHAPE)),
    *(_categorical(reduction, Categorical(ignore_index=-1)) for reduction in REDUCTIONS[:-1]),
    _categorical("batchmean", "categorical"),
    *(_categorical(reduction, "categorical", "mask-", _by_mask) for reduction in REDUCTIONS),
    _categorical("mean", Categorical(ignore_index=-1), "weight-", _by_sample),
    Case("elbo-categorical-per_sample", _categorical_elbo, (SHAPE[:1], (2, 3, 4))),
    *(_elbo("per_sample", likelihood, SHAPE[:1]) for likelihood in PARAMETERS),
    _elbo("averaged", "bernoulli", (), beta=0.125),  # exact in float32, to which the interpreter rounds it
    _elbo("beta_tensor", "mse", SHAPE[:1], beta=lambda device: torch.tensor(0.25, device=device)),
]
# One of each raw op and Function, for what is slow.
MAIN = [c for c in CASES if c.name in {
    "sample_kl-seed-sample", "sample_kl-prior_row", "packed-1", "packed-monte_carlo-prior",
    "sample_kl-samples-monte_carlo", "reparameterize", "gaussian_kl-batchmean",
    "reconstruction-bernoulli-batchmean", "reconstruction-gaussian-sample", "elbo-gaussian-per_sample",
    "elbo-mse-beta_tensor", "reconstruction-mask-batchmean", "reconstruction-binarize-sample", "elbo-bernoulli-extras",
    "reconstruction-categorical-batchmean", "reconstruction-categorical-sample",
    "reconstruction-categorical-mask-batchmean", "reconstruction-one_number-batchmean",
    "reconstruction-a_feature-sample", "elbo-one_number", "elbo-a_feature",
    "elbo-categorical-per_sample",
}]  # fmt: skip


def case_id(case):
    return case.name
