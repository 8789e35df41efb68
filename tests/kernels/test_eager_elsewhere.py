"""The eager backend on a GPU, played on the CPU: to look at a value, as it does there, would wait for the device."""

import pytest
import torch

from tests.kernels import classes, domains, latents, outputs, scaled, sharing
from tests.support.environment import INTERPRETED, Backend
from vae_fast import gaussian_kl, reconstruction_loss, sample_kl, use_backend

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the other process has the eager backend")

ELSEWHERE = Backend("eager", "cpu")
REDUCTIONS = ["none", "sample", "batchmean"]
ELEMENTWISE = [*domains.CORE, *domains.REST]


@pytest.fixture(autouse=True)
def looks(monkeypatch):
    """Tensors that say they are not on the CPU; how often the host has asked for a value."""
    asked = []

    def looking(look):
        return lambda *arguments: asked.append(look.__name__) or look(*arguments)

    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, looking(getattr(torch.Tensor, name)))
    with use_backend("eager"):
        yield asked


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("likelihood", ELEMENTWISE)
def test_every_likelihood(likelihood, reduction, looks):
    in_core = likelihood in domains.CORE
    case = outputs.Case("MNIST", likelihood, ELSEWHERE) if in_core else sharing.Case("samples", ELSEWHERE, likelihood)
    case.check(case.loss(reduction), reduction)
    assert not looks


@pytest.mark.parametrize("likelihood", ELEMENTWISE)
def test_a_weight_of_0_hides_anything(likelihood, looks):
    params, target = domains.draw(likelihood, (4, 7))
    without = reconstruction_loss(tuple(p[1:] for p in params), target[1:], likelihood, reduction="sum")
    params[0][0] = float("nan")
    output, weight = tuple(p.requires_grad_() for p in params), torch.tensor([0.0, 1.0, 1.0, 1.0])
    loss = reconstruction_loss(output, target, likelihood, weight=weight, reduction="sum")
    grads = torch.autograd.grad(loss, output)
    assert not looks
    torch.testing.assert_close(loss, without)
    for grad in grads:
        assert grad.isfinite().all()
        assert grad[0].eq(0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("prior", [None, (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_latents(dtype, prior, reduction, looks):
    p = latents.posterior("primes" if prior is None else "an expanded mu", ELSEWHERE, dtype, prior)
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, seed=3, reduction=reduction)
    latents.check(p, z, kl, seed=3, reduction=reduction)
    latents.check(p, None, gaussian_kl(p.mu, p.logvar, prior=p.prior, reduction=reduction), reduction=reduction)
    assert not looks


@pytest.mark.parametrize("scale", ["softplus", "std"])
def test_scales(scale, looks):
    p = scaled.scaled("odd", ELSEWHERE, scale)
    z, kl = sample_kl(p.mu, p.logvar, scale=scale, seed=3)
    scaled.check(p, z, kl, scale=scale, seed=3, reduction="sample")
    assert not looks


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_classes(reduction, count, looks):
    """Those of a few elements are left out, whatever their logits: by the index, or by the weight."""
    logits, target = classes.case((4, 5), count, ELSEWHERE)
    with torch.no_grad():
        logits[0, 0], target[0, 0], target[1, 1] = float("nan"), 2, 2
    weight = torch.ones(4, 5)
    weight[3, 2] = 0
    classes.check(logits, target, reduction, ignore_index=2, weight=weight)
    classes.check(logits.detach().nan_to_num().requires_grad_(), target, reduction)
    assert not looks
