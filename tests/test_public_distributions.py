"""DiagonalGaussian against torch.distributions, and what it does not compute; seeds and generators."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.cases import values
from vae_fast import DiagonalGaussian, gaussian_kl, reparameterize, sample_kl, sample_kl_packed
from vae_fast.reference import noise as reference


@pytest.fixture
def parameters(backend):
    """mu and logvar [4, 3], leaves."""
    return [((values(4, 3, device=backend.device, seed=i) - 0.5) * 4).requires_grad_() for i in (1, 2)]


def normal(mu, logvar):
    return Normal(mu, torch.exp(logvar / 2))


class Nothing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} was called")


def test_nothing_is_computed_before_it_is_asked_for(parameters):
    with Nothing():
        posterior = DiagonalGaussian(*parameters)
        assert posterior.mode() is posterior.mu is parameters[0]
        assert posterior.logvar is parameters[1]
        assert repr(posterior) == f"DiagonalGaussian(shape=[4, 3], dtype=torch.float64, device={parameters[0].device})"


def test_moments_are_split_as_views(backend):
    moments = values(2, 6, 4, 4, device=backend.device)
    for dim, channels in ((1, (2, 3, 4, 4)), (-3, (2, 3, 4, 4)), (-1, (2, 6, 4, 2))):
        posterior = DiagonalGaussian.from_moments(moments, dim)
        mu, logvar = moments.chunk(2, dim)
        assert posterior.mu.shape == channels
        assert (posterior.mu.data_ptr(), posterior.logvar.data_ptr()) == (mu.data_ptr(), logvar.data_ptr())
        torch.testing.assert_close(posterior.kl(), gaussian_kl(mu, logvar))
        torch.testing.assert_close(posterior.rsample(seed=1), reparameterize(mu, logvar, seed=1))


def test_kl_is_torch_distributions(parameters):
    posterior = DiagonalGaussian(*parameters)
    ours, theirs = posterior.kl(reduction="none"), kl_divergence(normal(*parameters), Normal(0.0, 1.0))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(posterior.kl(), theirs.sum() / 4)
    gradients = [torch.autograd.grad(kl.sum(), parameters) for kl in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("clamp", [None, (-0.5, 0.5)])
def test_kl_to_another_posterior(clamp, parameters):
    """Both clamps count, as do the gradients of both sides."""
    q, p = DiagonalGaussian(*parameters), DiagonalGaussian(*reversed(parameters), logvar_clamp=clamp)
    theirs_p = normal(parameters[1], parameters[0].clamp(*clamp) if clamp else parameters[0])
    theirs = kl_divergence(normal(*parameters), theirs_p).sum() / 4
    torch.testing.assert_close(q.kl(p), theirs)
    torch.testing.assert_close(q.kl((p.mu, p.logvar)), theirs)
    torch.testing.assert_close(torch.autograd.grad(q.kl(p), parameters), torch.autograd.grad(theirs, parameters))


def test_sample_kl_takes_what_kl_takes(parameters):
    q, p = DiagonalGaussian(*parameters), DiagonalGaussian(*reversed(parameters))
    z, kl = q.sample_kl(prior=p, reduction="batchmean", seed=1)
    torch.testing.assert_close(kl, q.kl(p))
    torch.testing.assert_close(z, q.rsample(seed=1))


def test_log_prob_is_torch_distributions(parameters, backend):
    value = values(4, 3, device=backend.device, seed=5)
    for clamp in (None, (-0.5, 0.5)):
        ours = DiagonalGaussian(*parameters, logvar_clamp=clamp).log_prob(value)
        theirs = normal(parameters[0], parameters[1].clamp(*clamp) if clamp else parameters[1]).log_prob(value).sum(1)
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(log_prob.sum(), parameters) for log_prob in (ours, theirs)]
        torch.testing.assert_close(*gradients)


def test_log_prob_of_its_own_sample(parameters):
    """log q(z) of z ~ q, as importance-weighted bounds need it: the gradient through z is part of it."""
    q = DiagonalGaussian(*parameters)
    z = q.rsample(seed=1)
    ours, theirs = q.log_prob(z), normal(*parameters).log_prob(z).sum(1)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(t.sum(), parameters, retain_graph=True) for t in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_a_clamped_logvar_has_a_gradient_at_its_bounds():
    """As the functions have it, where PyTorch's own clamp has none from 2.14 on."""
    logvar = torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0, math.nan]], requires_grad=True)
    clamped = DiagonalGaussian(torch.zeros(1, 6), logvar, logvar_clamp=(-0.5, 0.5)).logvar
    torch.testing.assert_close(clamped, logvar.detach().clamp(-0.5, 0.5), equal_nan=True)
    (gradient,) = torch.autograd.grad(clamped.sum(), logvar)
    assert gradient[0, :5].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_the_clamp_is_seen_by_every_method(parameters, backend):
    clamp, (mu, logvar) = (-0.5, 0.5), parameters
    plain = DiagonalGaussian(mu, logvar.clamp(*clamp))
    clamped = DiagonalGaussian(mu, logvar, logvar_clamp=clamp)
    packed = DiagonalGaussian.from_moments(torch.cat(parameters, 1), logvar_clamp=clamp)
    for posterior in (clamped, packed):
        torch.testing.assert_close(posterior.logvar, plain.logvar)
        torch.testing.assert_close(posterior.kl(), plain.kl())
        torch.testing.assert_close(posterior.rsample(seed=1), plain.rsample(seed=1))
        torch.testing.assert_close(posterior.sample_kl(seed=1), plain.sample_kl(seed=1))


def test_rsample_is_differentiable_and_sample_is_not(parameters):
    q = DiagonalGaussian(*parameters)
    z, constant = q.rsample(seed=1), q.sample(seed=1)
    assert torch.equal(z, constant)
    assert not constant.requires_grad
    by_mu, by_logvar = torch.autograd.grad(z.sum(), parameters)
    torch.testing.assert_close(by_mu, torch.ones_like(by_mu))
    torch.testing.assert_close(by_logvar, ((z - parameters[0]) / 2).detach())


def test_moments_get_one_gradient(backend):
    moments = values(4, 6, device=backend.device).requires_grad_()
    z, kl = DiagonalGaussian.from_moments(moments).sample_kl(seed=1)
    halves = [t.detach().requires_grad_() for t in moments.chunk(2, 1)]
    z_of_halves, kl_of_halves = sample_kl(*halves, seed=1)
    (z.sum() + kl.sum()).backward()
    (z_of_halves.sum() + kl_of_halves.sum()).backward()
    torch.testing.assert_close(moments.grad, torch.cat([t.grad for t in halves], 1))
    assert type(z.grad_fn).__name__ == type(kl.grad_fn).__name__
    assert z.grad_fn.next_functions[0][0].variable is moments  # no chunk between them


SOURCES = {
    "sample_kl": lambda m, **noise: sample_kl(m, m, **noise)[0],
    "packed": lambda m, **noise: sample_kl_packed(torch.cat([m, m], 1), **noise)[0],
    "reparameterize": lambda m, **noise: reparameterize(m, m, **noise),
    "rsample": lambda m, **noise: DiagonalGaussian(m, m).rsample(**noise),
    "sample": lambda m, **noise: DiagonalGaussian(m, m).sample(**noise),
}
sources = pytest.mark.parametrize("draw", SOURCES.values(), ids=SOURCES)


@sources
def test_a_seed_is_one_noise_in_every_function_and_form(draw, backend):
    mu = torch.zeros(4, 3, device=backend.device)
    for seed in (0, 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)):
        signed = seed - 2**64 if seed >= 2**63 else seed
        z = draw(mu, seed=seed)
        eps = torch.from_numpy(reference.normal(seed, 12)).view(4, 3).to(mu)
        torch.testing.assert_close(z, eps, rtol=0, atol=4e-6)
        forms = (torch.tensor(signed), torch.tensor([signed]), torch.tensor([[signed]]))
        assert all(torch.equal(draw(mu, seed=form.to(backend.device)), z) for form in forms)
        assert torch.equal(draw(mu, seed=seed % 2**64), z)


@sources
def test_generators_and_manual_seed_reproduce(draw, backend):
    mu = torch.zeros(16, 3, device=backend.device)
    device = torch.device(backend.device)
    first, again = (draw(mu, generator=torch.Generator(device).manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(4)
    drawn = [draw(mu), draw(mu)]
    torch.manual_seed(4)
    assert torch.equal(draw(mu), drawn[0])
    assert (drawn[0] != drawn[1]).all()
    generator = torch.Generator(device).manual_seed(4)
    assert (draw(mu, generator=generator) != draw(mu, generator=generator)).all()


@sources
def test_a_generator_leaves_the_default_one_alone(draw, backend):
    mu = torch.zeros(4, 3, device=backend.device)
    state = torch.get_rng_state()
    draw(mu, generator=torch.Generator(backend.device).manual_seed(4))
    draw(mu, seed=1)
    draw(mu, eps=mu)
    assert torch.equal(torch.get_rng_state(), state)


@sources
def test_eps_is_used_as_it_is(draw, backend):
    mu = torch.zeros(4, 3, device=backend.device, dtype=torch.float64)
    eps = values(4, 3, device=backend.device)
    assert torch.equal(draw(mu, eps=eps), eps)
    assert torch.equal(draw(mu, eps=eps.t().contiguous().t()), eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_the_log_density_is_the_same_of_a_value_that_requires_a_gradient(dtype, wide, backend):
    """The difference to the mean is taken in float32 or better, and the result has q's dtype."""
    mu, logvar, value = (values(4, 9, device=backend.device, seed=i).to(dtype) for i in range(3))
    q, value = DiagonalGaussian(100 * mu, -6 * logvar), 100 * value.to(torch.float64 if wide else dtype)
    plain, with_gradient = q.log_prob(value), q.log_prob(value.requires_grad_())
    assert plain.dtype == with_gradient.dtype == torch.float32
    exact = Normal(q.mu.double(), (0.5 * q.logvar.double()).exp()).log_prob(value.double()).sum(1)
    for found in (plain, with_gradient):
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
