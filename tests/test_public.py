"""The public names: what the package exports, its docstrings' examples, its modules, and the idioms they replace."""

import doctest
import inspect
import math
import typing

import pytest
import torch
import torch.nn.functional as F

import vae_fast
from tests.ops.cases import values
from vae_fast import (
    ELBO,
    ELBOLoss,
    GaussianKL,
    ReconstructionLoss,
    elbo_loss,
    free_bits,
    gaussian_kl,
    reconstruction_loss,
    sample_kl,
)
from vae_fast.likelihoods import LIKELIHOODS

PUBLIC = [name for name in vae_fast.__all__ if name not in ("VAE", "fit")]  # those two are tested with the models


def test_all_names_exist_and_nothing_else_is_public():
    assert len(set(vae_fast.__all__)) == len(vae_fast.__all__)
    for name in PUBLIC:
        assert getattr(vae_fast, name).__module__.startswith("vae_fast")
    defined = {
        name for name, value in vars(vae_fast).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert defined <= set(vae_fast.__all__)
    with pytest.raises(AttributeError, match="module 'vae_fast' has no attribute 'nothing'"):
        _ = vae_fast.nothing


def functions():
    """The public functions, and the public methods and properties of the public classes, by name."""
    for name in (*PUBLIC, "VAE"):
        value = getattr(vae_fast, name)
        for method, member in vars(value).items() if inspect.isclass(value) else [(None, value)]:
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            is_public = method in (None, "__init__", "__call__") or not method.startswith("_")
            if is_public and inspect.isfunction(function) and function.__module__.startswith("vae_fast"):
                yield name if method is None else f"{name}.{method}", function


def test_arguments_and_results_have_types():
    """The package says that it is typed: these are what a user's type checker sees."""
    untyped = {}
    for name, function in functions():
        wanted = {p for p in inspect.signature(function).parameters if p not in ("self", "cls")}
        wanted |= set() if name.endswith("__init__") else {"return"}
        untyped[name] = wanted - set(typing.get_type_hints(function))
    assert {"sample_kl", "ELBOLoss.forward", "DiagonalGaussian.mu", "DiagonalGaussian.from_moments"} <= set(untyped)
    assert {name: missing for name, missing in untyped.items() if missing} == {}


def documented():
    """The examples of every public docstring that has some to run, methods included."""
    names = {"torch": torch, "vae_fast": vae_fast, **{n: getattr(vae_fast, n) for n in PUBLIC}}
    values = {name: getattr(vae_fast, name) for name in PUBLIC}
    for name, value in list(values.items()):
        if inspect.isclass(value):
            methods = (method for method in vars(value) if not method.startswith("_"))
            values |= {f"{name}.{m}": getattr(value, m) for m in methods if callable(getattr(value, m))}
    for name, value in values.items():
        for found in doctest.DocTestFinder(recurse=False).find(inspect.unwrap(value), name, globs=names):
            if any(doctest.SKIP not in example.options for example in found.examples):
                yield pytest.param(found, id=name)


@pytest.mark.parametrize("examples", list(documented()))
def test_examples_in_docstrings(examples):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = []
    runner.run(examples, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name):
    text = inspect.getdoc(getattr(vae_fast, name))
    assert text
    assert ">>>" in text or name == "ELBO"


def problem(backend):
    """What a VAE has at hand: mu, logvar, output, target, of 4 samples with 3 latents and 6 pixels."""
    mu, logvar = ((values(4, 3, device=backend.device, seed=i) - 0.5) * 3 for i in (1, 2))
    output = ((values(4, 1, 2, 3, device=backend.device, seed=3) - 0.5) * 5).requires_grad_()
    return mu.requires_grad_(), logvar.requires_grad_(), output, values(4, 1, 2, 3, device=backend.device, seed=4)


def kl_sum(mu, logvar):
    return -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


# what users write -> our call for it. M_N is the minibatch's share of the data set (PyTorch-VAE's kld_weight).
M_N = 0.00025
IDIOMS = {
    "pytorch/examples vae: BCE of probabilities, summed, plus -0.5 sum(...)": (
        lambda m, v, a, x: F.binary_cross_entropy(torch.sigmoid(a).flatten(1), x.flatten(1), reduction="sum")
        + kl_sum(m, v),
        lambda m, v, a, x: len(x) * elbo_loss(a, x, gaussian_kl(m, v)).total,
    ),
    "the same over the batch size: nats per sample": (
        lambda m, v, a, x: (F.binary_cross_entropy_with_logits(a, x, reduction="sum") + kl_sum(m, v)) / x.shape[0],
        lambda m, v, a, x: elbo_loss(a, x, sample_kl(m, v, seed=0)[1]).total,
    ),
    "sums over pixels, then a mean over the batch": (
        lambda m, v, a, x: (
            F.binary_cross_entropy_with_logits(a, x, reduction="none").flatten(1).sum(1)
            + -0.5 * torch.sum(1 + v - m**2 - v.exp(), dim=1)
        ).mean(),
        lambda m, v, a, x: elbo_loss(a, x, gaussian_kl(m, v, reduction="sample")).total,
    ),
    "PyTorch-VAE: mean MSE plus kld_weight times the KL's mean over the batch": (
        lambda m, v, a, x: F.mse_loss(a, x)
        + M_N * torch.mean(-0.5 * torch.sum(1 + v - m**2 - v.exp(), dim=1), dim=0),
        lambda m, v, a, x: reconstruction_loss(a, x, "mse", reduction="mean") + M_N * gaussian_kl(m, v),
    ),
    "the same as an ELBO: divided by the pixels of an image": (
        lambda m, v, a, x: F.mse_loss(a, x) + M_N * kl_sum(m, v) / len(x),
        lambda m, v, a, x: elbo_loss(a, x, gaussian_kl(m, v), likelihood="mse", beta=M_N * 6).total / 6,
    ),
    "half the squared error: a Gaussian of variance 1, less its constant": (
        lambda m, v, a, x: 0.5 * F.mse_loss(a, x, reduction="sum") / len(x) + kl_sum(m, v) / len(x),
        lambda m, v, a, x: 0.5 * elbo_loss(a, x, gaussian_kl(m, v), likelihood="mse", beta=2.0).total,
    ),
    "beta-VAE": (
        lambda m, v, a, x: (F.binary_cross_entropy_with_logits(a, x, reduction="sum") + 4 * kl_sum(m, v)) / len(x),
        lambda m, v, a, x: elbo_loss(a, x, gaussian_kl(m, v), beta=4.0).total,
    ),
    "torch.distributions: kl_divergence(...).sum(-1).mean()": (
        lambda m, v, a, x: torch.distributions.kl_divergence(
            torch.distributions.Normal(m, (0.5 * v).exp()), torch.distributions.Normal(0.0, 1.0)
        ).sum(-1).mean(),
        lambda m, v, a, x: gaussian_kl(m, v),
    ),
    "the mean of the KL over everything": (
        lambda m, v, a, x: torch.mean(-0.5 * (1 + v - m**2 - v.exp())),
        lambda m, v, a, x: gaussian_kl(m, v, reduction="mean"),
    ),
    "gaussian_nll_loss with full=True and a variance": (
        lambda m, v, a, x: F.gaussian_nll_loss(a, x, torch.exp(0.3 * a), full=True, reduction="sum") / len(x),
        lambda m, v, a, x: reconstruction_loss((a, 0.3 * a), x, "gaussian"),
    ),
    "latent diffusion: nll over the batch plus kl_weight times the KL over the batch": (
        lambda m, v, a, x: torch.sum((a - x) ** 2) / a.shape[0]
        + 1e-6 * torch.sum(0.5 * torch.sum(m**2 + v.exp() - 1.0 - v, dim=[1])) / m.shape[0],
        lambda m, v, a, x: elbo_loss(a, x, gaussian_kl(m, v), likelihood="mse", beta=1e-6).total,
    ),
    "free bits: a floor for each latent's KL": (
        lambda m, v, a, x: (-0.5 * (1 + v - m**2 - v.exp())).mean(0).clamp(min=0.5).sum(),
        lambda m, v, a, x: free_bits(gaussian_kl(m, v, reduction="latent"), 0.5, per="latent"),
    ),
    "capacity: the distance of the batch's KL from it": (
        lambda m, v, a, x: F.binary_cross_entropy_with_logits(a, x, reduction="sum") / len(x)
        + 4 * (kl_sum(m, v) / len(x) - 25).abs(),
        lambda m, v, a, x: ELBOLoss(beta=4.0, capacity=25)(a, x, gaussian_kl(m, v)).total,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "ours"), IDIOMS.values(), ids=IDIOMS)
def test_the_usual_idioms_are_our_calls(theirs, ours, backend):
    tensors = problem(backend)
    losses = [function(*tensors) for function in (ours, theirs)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, tensors[:3], allow_unused=True, materialize_grads=True) for loss in losses]
    torch.testing.assert_close(*gradients)


def test_mse_is_a_gaussian_of_variance_one_half_less_a_constant(backend):
    _, _, output, target = problem(backend)
    logvar = torch.full_like(output, math.log(0.5))
    nll = reconstruction_loss((output, logvar), target, "gaussian", reduction="none")
    mse = reconstruction_loss(output, target, "mse", reduction="none")
    torch.testing.assert_close(mse, nll - math.log(math.pi) / 2, rtol=1e-7, atol=1e-7)


MODULES = [
    (GaussianKL(), lambda m, v, a, x: (m, v), lambda m, v, a, x: gaussian_kl(m, v)),
    (GaussianKL(reduction="latent", logvar_clamp=(-0.5, 0.5)), lambda m, v, a, x: (m, v),
     lambda m, v, a, x: gaussian_kl(m, v, reduction="latent", logvar_clamp=(-0.5, 0.5))),
    (GaussianKL(scale="softplus"), lambda m, v, a, x: (m, v), lambda m, v, a, x: gaussian_kl(m, v, scale="softplus")),
    (GaussianKL(), lambda m, v, a, x: (m, v, (v, m)), lambda m, v, a, x: gaussian_kl(m, v, prior=(v, m))),
    (ReconstructionLoss(), lambda m, v, a, x: (a, x), lambda m, v, a, x: reconstruction_loss(a, x)),
    (ReconstructionLoss("mse", reduction="sample"), lambda m, v, a, x: (a, x),
     lambda m, v, a, x: reconstruction_loss(a, x, "mse", reduction="sample")),
    (ReconstructionLoss("gaussian"), lambda m, v, a, x: ((a, a), x),
     lambda m, v, a, x: reconstruction_loss((a, a), x, "gaussian")),
    (ELBOLoss(), lambda m, v, a, x: (a, x, m.sum(1)), lambda m, v, a, x: elbo_loss(a, x, m.sum(1))),
    (ELBOLoss("mse", beta=0.5), lambda m, v, a, x: (a, x, m.sum(1)),
     lambda m, v, a, x: elbo_loss(a, x, m.sum(1), likelihood="mse", beta=0.5)),
]  # fmt: skip


@pytest.mark.parametrize(("module", "arguments", "function"), MODULES, ids=[repr(m) for m, _, _ in MODULES])
def test_modules_are_the_functions(module, arguments, function, backend):
    tensors = problem(backend)
    torch.testing.assert_close(module(*arguments(*tensors)), function(*tensors), rtol=0, atol=0)
    assert not list(module.parameters())
    assert not module.state_dict()


def test_modules_say_what_they_were_made_with():
    assert repr(GaussianKL(reduction="sum")) == "GaussianKL(logvar_clamp=None, reduction='sum')"
    assert repr(GaussianKL(scale="std")) == "GaussianKL(logvar_clamp=None, reduction='batchmean', scale='std')"
    assert repr(ReconstructionLoss("mse")) == "ReconstructionLoss('mse', reduction='batchmean')"
    assert repr(ELBOLoss(beta=4.0)) == "ELBOLoss('bernoulli', beta=4.0)"


def test_the_beta_of_a_module_may_change_between_steps(backend):
    _, _, output, target = problem(backend)
    module, kl = ELBOLoss(beta=0.0), torch.ones(4, device=backend.device)
    for beta in (0.0, 0.5, torch.tensor(0.25, device=backend.device)):
        module.beta = beta
        loss = module(output, target, kl)
        torch.testing.assert_close(loss.total, loss.reconstruction + float(beta))


def test_elbo_loss_returns_names(backend):
    mu, logvar, output, target = problem(backend)
    losses = elbo_loss(output, target, gaussian_kl(mu, logvar), beta=3.0)
    assert isinstance(losses, ELBO)
    assert losses._fields == ("total", "reconstruction", "kl")
    torch.testing.assert_close(losses.total, losses.reconstruction + 3 * losses.kl)


def test_meta_tensors_give_shapes():
    """As model summaries need."""
    mu, logvar = (torch.zeros(4, 3, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    z, kl = sample_kl(mu, logvar)
    assert (z.shape, z.dtype, z.device.type, kl.shape, kl.dtype) == ((4, 3), mu.dtype, "meta", (4,), torch.float32)
    elbo_loss(z, z.detach(), kl).total.backward()
    assert (mu.grad.shape, mu.grad.dtype) == ((4, 3), mu.dtype)


@pytest.mark.parametrize("reduction", ["sum", "sample", "none"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_takes_meta_tensors(likelihood, reduction):
    row = LIKELIHOODS[likelihood]
    target = torch.zeros(4, 3, device="meta", dtype=torch.int64 if row.domain == "classes" else torch.float32)
    shape = (4, 3, 2) if row.domain == "classes" else (4, 3)
    params = tuple(torch.zeros(shape, device="meta", requires_grad=True) for _ in row.parameters)
    output = params if len(params) > 1 else params[0]
    loss = reconstruction_loss(output, target, likelihood, reduction=reduction)
    assert loss.shape == {"sum": (), "sample": (4,), "none": (4, 3)}[reduction]
    loss.sum().backward()
    assert all(p.grad.shape == shape for p in params)
