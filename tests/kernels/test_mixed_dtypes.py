"""Parameters of one call in dtypes of their own, as autocast makes them: bfloat16 of a layer, float32 of a softplus."""

import itertools

import pytest
import torch

from tests.kernels import outputs, sharing
from tests.kernels.latents import DTYPES, REDUCTIONS, check, drawer, posterior
from vae_fast import elbo_loss, gaussian_kl, reparameterize, sample_kl
from vae_fast.likelihoods import LIKELIHOODS

SEED = 2**40 + 3
PAIRS = [*itertools.permutations(DTYPES[:3], 2)]
AUTOCAST = (torch.bfloat16, torch.float32)
SEVERAL = [name for name, row in LIKELIHOODS.items() if len(row.parameters) > 1]

each_pair = pytest.mark.parametrize("dtypes", PAIRS, ids=str)


def cast(tensors, dtypes):
    """The first in the first dtype, the next in the second, and so on in turn."""
    return [t.detach().to(dtype).requires_grad_() for t, dtype in zip(tensors, itertools.cycle(dtypes))]


def mixed(layout, backend, dtypes, prior=None):
    p = posterior(layout, backend, prior=prior)
    p.mu, p.logvar, *priors = cast(p.inputs, dtypes)
    p.prior = tuple(priors) or None
    return p


@each_pair
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", ["odd", "chunk(2, 1)", "two layouts"])
def test_sample_kl(layout, reduction, dtypes, backend):
    p = mixed(layout, backend, dtypes)
    z, kl = sample_kl(p.mu, p.logvar, seed=SEED, reduction=reduction)
    assert z.dtype == p.mu.dtype
    check(p, z, kl, seed=SEED, reduction=reduction)


@pytest.mark.parametrize("layout", ["full tiles", "primes", "rows split over programs", "unaligned"])
def test_sample_kl_of_whole_tiles_and_of_tails(layout, backend):
    p = mixed(layout, backend, AUTOCAST)
    check(p, *sample_kl(p.mu, p.logvar, seed=SEED), seed=SEED, reduction="sample")


@each_pair
@pytest.mark.parametrize("clamp", [None, (-0.75, 0.5)], ids=["free", "clamped"])
@pytest.mark.parametrize("reduction", ["sample", "batchmean", "latent"])
@pytest.mark.parametrize("prior", [(5, 3, 7), (3, 7)], ids=["full", "a latent"])
def test_a_prior(prior, reduction, clamp, dtypes, backend):
    p, options = mixed("odd", backend, dtypes, prior), {"logvar_clamp": clamp, "reduction": reduction}
    z, kl = sample_kl(p.mu, p.logvar, prior=p.prior, seed=SEED, **options)
    check(p, z, kl, clamp=clamp, seed=SEED, reduction=reduction)
    check(p, None, gaussian_kl(p.mu, p.logvar, prior=p.prior, **options), clamp=clamp, reduction=reduction)


@each_pair
def test_a_prior_of_another_dtype_than_the_posterior(dtypes, backend):
    p = mixed("odd", backend, dtypes[:1] * 2 + dtypes[1:] * 2, prior=(3, 7))
    assert {t.dtype for t in p.inputs[:2]}.isdisjoint(t.dtype for t in p.prior)
    check(p, *sample_kl(p.mu, p.logvar, prior=p.prior, seed=SEED), seed=SEED, reduction="sample")


@each_pair
@pytest.mark.parametrize("clamp", [None, (-0.75, 0.5)], ids=["free", "clamped"])
@pytest.mark.parametrize("source", ["seed", "eps"])
def test_reparameterize(source, clamp, dtypes, backend):
    p = mixed("odd", backend, dtypes)
    noise = {"seed": SEED} if source == "seed" else {"eps": drawer(backend.device, torch.float32, seed=4)(5, 3, 7)}
    check(p, reparameterize(p.mu, p.logvar, logvar_clamp=clamp, **noise), None, clamp=clamp, **noise)


@each_pair
@pytest.mark.parametrize("scale", ["std", "softplus", "logstd"])
@pytest.mark.parametrize("kl", ["closed_form", "monte_carlo"])
def test_other_scales_and_the_drawn_kl(kl, scale, dtypes, backend):
    """Against the same numbers in float32, which the tests of each scale hold against the reference."""
    p = mixed("odd", backend, dtypes, prior=(3, 7))
    tensors = [t.detach().abs().add(0.5).requires_grad_() for t in p.inputs]
    wide = [t.detach().float().requires_grad_() for t in tensors]
    made, same = (
        sample_kl(*t[:2], prior=tuple(t[2:]), scale=scale, kl=kl, seed=SEED, num_samples=2) for t in (tensors, wide)
    )
    torch.testing.assert_close(made[0], same[0].to(dtypes[0]))
    torch.testing.assert_close(made[1], same[1], rtol=2e-6, atol=2e-6)
    upstream = [torch.ones_like(t) for t in same]
    grads = torch.autograd.grad(made, tensors, [u.to(t.dtype) for u, t in zip(upstream, made, strict=True)])
    for grad, expected, tensor in zip(grads, torch.autograd.grad(same, wide, upstream), tensors, strict=True):
        assert grad.dtype == tensor.dtype
        loose = 3 * torch.finfo(tensor.dtype).eps  # and a prior's is summed in its dtype
        torch.testing.assert_close(grad.float(), expected, rtol=10 * loose, atol=10 * loose)


@each_pair
@pytest.mark.parametrize("reduction", outputs.REDUCTIONS)
@pytest.mark.parametrize("layout", ["MNIST", "chunks of images", "channels_last output"])
def test_reconstruction_loss(layout, reduction, dtypes, backend):
    case = outputs.Case(layout, "gaussian", backend)
    case.params = cast(case.params, dtypes)
    case.check(case.loss(reduction), reduction)


@each_pair
@pytest.mark.parametrize("reduction", ["batchmean", "sample", "none"])
@pytest.mark.parametrize("layout", ["one number", "features", "channels of 7 x 7"])
def test_a_shared_parameter(layout, reduction, dtypes, backend):
    case = sharing.Case(layout, backend)
    case.params = cast(case.params, dtypes)
    case.check(case.loss(reduction), reduction)


ORDERS = [*itertools.product(["one number", "features"], [AUTOCAST, AUTOCAST[::-1]])]
ORDERS.append(("samples", AUTOCAST))  # autograd sums the gradient, in its dtype


@pytest.mark.parametrize(("layout", "dtypes"), ORDERS, ids=str)
@pytest.mark.parametrize("likelihood", SEVERAL)
def test_every_likelihood(likelihood, layout, dtypes, backend):
    case = sharing.Case(layout, backend, likelihood)
    case.params = cast(case.params, dtypes)
    case.check(case.loss(), "batchmean")


@each_pair
@pytest.mark.parametrize("upstream", [1.0, -2.5])
@pytest.mark.parametrize("layout", ["one number", "features"])
def test_elbo_loss(layout, upstream, dtypes, backend):
    """Of float16 no gradient is made in forward, and none of the other parameter then."""
    case = sharing.Case(layout, backend)
    case.params = cast(case.params, dtypes)
    kl = torch.rand(len(case.target), device=backend.device, requires_grad=True)
    total = case.elbo(kl, 0.5).total
    *grads, kl_grad = torch.autograd.grad(total, [*case.params, kl], torch.full_like(total, upstream))
    case.check_grads(grads, upstream / len(case.target))
    torch.testing.assert_close(kl_grad, torch.full_like(kl, upstream * 0.5 / len(kl)))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["the mean's", "the scale's"])
@each_pair
def test_one_gradient_of_two(dtypes, wanted, backend):
    case = sharing.Case("features", backend)
    case.params = cast(case.params, dtypes)
    for param, want in zip(case.params, wanted, strict=True):
        param.requires_grad_(want)
    kl = torch.zeros((), device=backend.device)
    both = [t.detach().requires_grad_() for t in case.params]
    (param,), (same,) = ([t for t, want in zip(each, wanted, strict=True) if want] for each in (case.params, both))
    case.loss().backward()
    elbo_loss(tuple(both), case.target, kl, likelihood="gaussian").total.backward()
    torch.testing.assert_close(param.grad, same.grad)
