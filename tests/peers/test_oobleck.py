"""diffusers' Oobleck posterior, patched against its own: no 1/2 in the KL, and a mean over batch and time."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: make test-peers", exc_type=ModuleNotFoundError)

from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution as Oobleck

from vae_fast import gaussian_kl
from vae_fast.integrations import diffusers as fast


def moments(device, shape=(2, 8, 6), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator)).to(device, dtype).requires_grad_()


def assert_same(compute, *inputs):
    """compute(inputs) and its gradients, patched and not."""

    def value_and_gradients():
        value = compute(*inputs)
        return value, torch.autograd.grad(value.sum(), inputs, allow_unused=True)

    theirs = value_and_gradients()
    with fast.patch():
        torch.testing.assert_close(value_and_gradients(), theirs)


@pytest.mark.parametrize("shape", [(2, 8, 6), (3, 2, 5), (4, 6), (2, 4, 3, 5)], ids=str)
def test_kl(shape, backend):
    assert_same(lambda parameters: Oobleck(parameters).kl(), moments(backend.device, shape))


@pytest.mark.parametrize("shape", [(2, 8, 6), (3, 2, 5), (4, 6), (2, 4, 3, 5)], ids=str)
def test_sample_with_a_generator_is_diffusers_own_draw(shape, backend):
    def sample(parameters):
        return Oobleck(parameters).sample(torch.Generator().manual_seed(0))

    assert_same(sample, moments(backend.device, shape))


def test_sample_with_a_generator_for_each_sample(backend):
    def sample(parameters):
        return Oobleck(parameters).sample([torch.Generator().manual_seed(k) for k in range(2)])

    assert_same(sample, moments(backend.device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_samples_have_the_mean_and_the_standard_deviation(dtype, backend):
    parameters = moments(backend.device, (1, 2, 1)).detach().to(dtype).expand(4096, 2, 2)
    with fast.patch():
        posterior = Oobleck(parameters)
        draws = posterior.sample()
        assert draws.dtype == dtype
        again = posterior.sample()
        assert not torch.equal(again, draws)
        draws = draws.double()
        std = posterior.std[0, 0, 0].item()
        assert abs(draws.mean().item() - posterior.mean[0, 0, 0].item()) < 0.05 * std
        assert abs(draws.std().item() / std - 1) < 0.05


def test_a_sample_after_std_was_set_has_that(backend):
    parameters = moments(backend.device).detach()
    with fast.patch():
        posterior = Oobleck(parameters)
        posterior.std = torch.zeros_like(posterior.mean)
        assert torch.equal(posterior.sample(), posterior.mean)


def test_kl_is_twice_the_kl_in_nats_per_latent_frame(backend):
    parameters = moments(backend.device).detach()
    with fast.patch():
        posterior = Oobleck(parameters)
        nats = gaussian_kl(posterior.mean, posterior.logvar, reduction="none").sum(1).mean()
        torch.testing.assert_close(posterior.kl(), 2 * nats)
        assert Oobleck(parameters).kl().shape == ()


def test_kl_where_softplus_saturates(backend):
    """std stops at 1e-4 below, and is scale above: no clamp."""
    parameters = torch.tensor([[0.5] * 4, [-200.0, -30.0, 30.0, 200.0]], device=backend.device).view(1, 2, 4)
    assert_same(lambda parameters: Oobleck(parameters).kl(), parameters.requires_grad_())


def test_kl_to_another_posterior_keeps_its_sign(backend):
    """diffusers adds log var - log other.var, where the KL has the opposite: a drop-in has diffusers' number."""
    mine, other = moments(backend.device), moments(backend.device, seed=1)
    assert_same(lambda a, b: Oobleck(a).kl(Oobleck(b)), mine, other)
    with fast.patch():
        q, p = Oobleck(mine.detach()), Oobleck(other.detach())
        nats = gaussian_kl(q.mean, q.logvar, prior=(p.mean, p.logvar), reduction="none").sum(1).mean()
        difference = 2 * (q.logvar - p.logvar).sum(1).mean()
        torch.testing.assert_close(q.kl(p), 2 * nats + difference)


def test_sample(backend):
    assert_same(
        lambda parameters: Oobleck(parameters).sample(torch.Generator(backend.device).manual_seed(0)),
        moments(backend.device),
    )
    assert_same(
        lambda parameters: Oobleck(parameters).sample([torch.Generator(backend.device).manual_seed(i) for i in (0, 1)]),
        moments(backend.device),
    )


def test_deterministic_still_samples(backend):
    """Unlike the image posterior: only kl() knows the flag."""

    def everything():
        posterior = Oobleck(moments(backend.device).detach(), deterministic=True)
        sample = posterior.sample(torch.Generator(backend.device).manual_seed(0))
        return posterior.kl(), sample, posterior.std, posterior.mode()

    theirs = everything()
    with fast.patch():
        ours = everything()
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours[1], ours[3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype, backend):
    def everything():
        posterior = Oobleck(moments(backend.device, dtype=dtype).detach())
        return posterior.kl(), posterior.sample(torch.Generator(backend.device).manual_seed(0)), posterior.std

    theirs = everything()
    with fast.patch():
        ours = everything()
    assert [v.dtype for v in ours] == [v.dtype for v in theirs] == [dtype] * 3
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.0)


def test_autocast_gives_the_dtypes_it_gave(backend):
    def dtypes():
        with torch.autocast(backend.device, torch.bfloat16):
            posterior = Oobleck(moments(backend.device, dtype=torch.bfloat16))
        return posterior.std.dtype, posterior.kl().dtype, posterior.sample().dtype

    theirs = dtypes()
    with fast.patch():
        assert dtypes() == theirs
