"""diffusers' DiagonalGaussianDistribution, patched against its own: values, gradients, shapes, dtypes."""

from collections import namedtuple

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: make test-peers", exc_type=ModuleNotFoundError)

from diffusers.models.autoencoders import vae
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution

from vae_fast.integrations import diffusers as fast

EXPONENTS = 5e-6  # relative, of exp(x) up to |x| = 45: 6e-8 of x, for each of the two

SHAPES = [
    (2, 8, 4, 4),  # an image's latents
    (3, 2, 5, 7),  # one channel, odd sizes
    (2, 8, 3, 4, 5),  # a video's [B, C, T, H, W]
]


def both(compute):
    """compute(the class) as diffusers does it, and patched."""
    theirs = compute(vae.DiagonalGaussianDistribution)
    with fast.patch():
        return theirs, compute(vae.DiagonalGaussianDistribution)


def moments(shape, device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=generator)).to(device, dtype).requires_grad_()


def assert_same(compute, parameters, **tolerance):
    """compute(posterior) and the gradient of its weighted sum, patched and not."""

    def value_and_gradient(cls):
        value = compute(cls(parameters))
        weights = torch.linspace(1, 2, value.numel(), device=value.device).view(value.shape)
        return value, torch.autograd.grad((value * weights).sum(), parameters)[0]

    torch.testing.assert_close(*both(value_and_gradient), **tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kl_to_the_standard_normal(shape, backend):
    assert_same(lambda posterior: posterior.kl(), moments(shape, backend.device))


def test_kl_of_video_latents_keeps_the_last_dimension(backend):
    """diffusers sums over dimensions 1, 2 and 3, whatever there is."""
    theirs, ours = both(lambda cls: cls(moments((2, 8, 3, 4, 5), backend.device)).kl())
    assert theirs.shape == ours.shape == (2, 5)


def test_kl_below_four_dimensions_is_the_same_error(backend):
    def message(cls):
        with pytest.raises(IndexError) as error:
            cls(moments((2, 8, 6), backend.device)).kl()
        return str(error.value)

    theirs, ours = both(message)
    assert theirs == ours


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kl_to_another_posterior(shape, backend):
    """In both posteriors' gradients; the other's logvar is clamped too."""
    mine, other = (moments(shape, backend.device, seed=i) for i in (1, 2))
    other = (20 * other.detach()).requires_grad_()
    mine = (mine.detach() / 10).requires_grad_()
    other.data[:, shape[1] // 2 :] += 25  # some beyond the clamp

    def kl(cls):
        value = cls(mine).kl(cls(other))
        return value, *torch.autograd.grad(value.sum(), (mine, other))

    torch.testing.assert_close(*both(kl), rtol=EXPONENTS, atol=1e-5)


def test_kl_to_a_posterior_of_another_shape_broadcasts(backend):
    mine, other = moments((3, 8, 2, 2), backend.device), moments((1, 8, 2, 2), backend.device, seed=1)
    assert_same(lambda posterior: posterior.kl(type(posterior)(other)), mine)


def test_the_clamp_passes_the_gradient_at_its_bounds_and_blocks_it_outside(backend):
    logvar = torch.tensor([-31.0, -30.0, -29.0, 19.0, 20.0, 21.0])
    parameters = torch.stack([torch.full((6,), 0.5), logvar]).reshape(1, 2, 1, 6).to(backend.device).requires_grad_()
    kept = torch.tensor([False, True, True, True, True, False])

    def gradients(cls):
        losses = (
            cls(parameters).kl(),
            cls(parameters).kl(cls(torch.zeros_like(parameters))),
            cls(torch.zeros_like(parameters)).kl(cls(parameters)),
            cls(parameters).sample(torch.Generator(backend.device).manual_seed(0)),
            cls(parameters).nll(torch.ones_like(parameters[:, :1])),
        )
        return [torch.autograd.grad(loss.sum(), parameters)[0] for loss in losses]

    theirs, ours = both(gradients)
    for expected, gradient in zip(theirs, ours):
        torch.testing.assert_close(gradient, expected, rtol=EXPONENTS, atol=1e-5)
        assert torch.equal(gradient[0, 1, 0].cpu() != 0, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_sample_with_a_generator_is_the_same_draw(dtype, backend):
    """Bit for bit the same noise; z to the rounding of one multiply-add. The generator moves on as it did."""
    shape = (3, 8, 4, 4)

    def draw(cls):
        generator = torch.Generator(backend.device).manual_seed(7)
        posterior = cls(moments(shape, backend.device, dtype))
        unit = cls(torch.zeros(shape, device=backend.device, dtype=dtype))
        return posterior.sample(generator), unit.sample(generator=generator), torch.rand(1, generator=generator)

    (z, eps, then), (our_z, our_eps, our_then) = both(draw)
    assert torch.equal(eps, our_eps)
    assert torch.equal(then, our_then)
    # In half precision diffusers rounds std and the product too.
    torch.testing.assert_close(our_z, z, rtol=0, atol=4 * torch.finfo(dtype).eps * z.abs().max().item())


def test_a_list_of_generators_draws_one_sample_each(backend):
    def draw(cls):
        generators = [torch.Generator(backend.device).manual_seed(seed) for seed in (5, 6)]
        return cls(torch.zeros(2, 8, 4, 4, device=backend.device)).sample(generators)

    theirs, ours = both(draw)
    assert torch.equal(theirs, ours)
    assert not torch.equal(ours[0], ours[1])


def test_a_generator_on_the_cpu_serves_any_device(backend):
    theirs, ours = both(
        lambda cls: cls(torch.zeros(2, 8, 4, 4, device=backend.device)).sample(torch.Generator().manual_seed(5))
    )
    assert torch.equal(theirs, ours)


def test_sample_has_the_gradient(backend):
    assert_same(
        lambda posterior: posterior.sample(torch.Generator(backend.device).manual_seed(0)),
        moments((2, 8, 4, 4), backend.device),
    )


def test_sample_without_a_generator_is_normal_and_fresh(backend):
    with fast.patch():
        posterior = vae.DiagonalGaussianDistribution(torch.zeros(4, 8, 32, 32, device=backend.device))
        first, second = posterior.sample(), posterior.sample()
    assert first.shape == (4, 4, 32, 32)
    assert not torch.equal(first, second)
    assert abs(first.mean().item()) < 0.05
    assert abs(first.std().item() - 1) < 0.05


@pytest.mark.parametrize("dims", [None, (1, 2, 3), [2, 3], (0, 1, 2, 3), -1], ids=str)
@pytest.mark.parametrize("in_sample", [False, True], ids=["constant sample", "sample with a gradient"])
def test_nll(dims, in_sample, backend):
    parameters = moments((2, 8, 4, 4), backend.device)

    def nll(posterior):
        sample = parameters[:, 2:6] if in_sample else parameters[:, 2:6].detach()
        return posterior.nll(sample) if dims is None else posterior.nll(sample, dims)

    assert_same(nll, parameters, rtol=1e-5, atol=1e-4)


def test_nll_broadcasts_as_before(backend):
    assert_same(
        lambda posterior: posterior.nll(torch.ones(1, device=backend.device)), moments((2, 8, 4, 4), backend.device)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_are_those_of_the_parameters(dtype, backend):
    def dtypes_and_kl(cls):
        posterior = cls(moments((2, 8, 4, 4), backend.device, dtype) / 4)
        values = (
            posterior.kl(),
            posterior.sample(),
            posterior.nll(posterior.mean.detach()),
            posterior.std,
            posterior.var,
        )
        return [v.dtype for v in values], values[0]

    (dtypes, kl), (our_dtypes, our_kl) = both(dtypes_and_kl)
    assert our_dtypes == dtypes == [dtype] * 5
    torch.testing.assert_close(our_kl, kl, rtol=0.02 if dtype != torch.float64 else 1e-12, atol=0.0)


def test_autocast_gives_the_dtypes_it_gave(backend):
    """On a GPU exp is float32 under autocast, and so are the sample and the kl, also after the region."""

    def dtypes(cls):
        with torch.autocast(backend.device, torch.bfloat16):
            posterior = cls(moments((2, 8, 4, 4), backend.device, torch.bfloat16))
            inside = posterior.kl().dtype, posterior.sample().dtype
        later = cls(posterior.parameters)
        with torch.autocast(backend.device, torch.bfloat16):
            late = later.kl().dtype, later.sample().dtype
        return *inside, posterior.kl().dtype, posterior.sample().dtype, posterior.std.dtype, *late

    theirs, ours = both(dtypes)
    assert theirs == ours


def test_deterministic_posteriors(backend):
    """No spread: the sample is the mean and the divergences are one zero on the CPU. The generator moves on."""

    def everything(cls):
        generator = torch.Generator(backend.device).manual_seed(3)
        posterior = cls(moments((2, 8, 4, 4), backend.device), deterministic=True)
        values = posterior.sample(generator), posterior.kl(), posterior.nll(posterior.mean), posterior.mode()
        return *values, posterior.std, posterior.logvar, torch.rand(1, generator=generator)

    theirs, ours = both(everything)
    assert all(torch.equal(a, b) and a.device == b.device for a, b in zip(theirs, ours))
    assert torch.equal(ours[0], ours[3])


def test_kl_to_a_deterministic_posterior_stays_infinite(backend):
    parameters = moments((2, 8, 4, 4), backend.device)
    theirs, ours = both(lambda cls: cls(parameters).kl(cls(parameters - 1, deterministic=True)))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert not ours.isfinite().any()


@pytest.mark.parametrize("name", ["var", "logvar"])
def test_nll_takes_values_that_were_set(name):
    def nll(cls):
        posterior = cls(torch.linspace(-1, 1, 256).view(2, 8, 4, 4))
        setattr(posterior, name, torch.full_like(posterior.mean, 0.25))
        return posterior.nll(torch.ones_like(posterior.mean))

    theirs, ours = both(nll)
    torch.testing.assert_close(ours, theirs)


def test_odd_channels_broadcast_as_before(backend):
    """A mean of two channels beside a log-variance of one."""

    def values(cls):
        posterior = cls(moments((2, 3, 4, 4), backend.device))
        draw = posterior.sample(torch.Generator(backend.device).manual_seed(0))
        return (
            posterior.kl(),
            posterior.kl(cls(moments((2, 3, 4, 4), backend.device, seed=1))),
            draw,
            posterior.nll(draw),
        )

    theirs, ours = both(values)
    torch.testing.assert_close(ours, theirs)


def test_what_is_no_posterior_of_this_class_is_theirs(backend):
    """Oobleck's, whose scale is no log-variance, a tuple of what kl() reads, and a number in place of a sample."""
    parameters = moments((2, 8, 4, 4), backend.device)

    def values(cls):
        oobleck = OobleckDiagonalGaussianDistribution(parameters + 1)
        names = "mean", "var", "logvar"
        alike = namedtuple("Alike", names)(*(getattr(cls(parameters / 2), name) for name in names))
        return cls(parameters).kl(oobleck), cls(parameters).kl(alike), cls(parameters).nll(0.5)

    theirs, ours = both(values)
    torch.testing.assert_close(ours, theirs)


def test_two_dtypes_give_the_wider(backend):
    narrow = torch.linspace(-1, 1, 256, device=backend.device).view(2, 8, 4, 4)

    def values(cls):
        posterior, wide = cls(narrow), cls(narrow.double() / 2)
        return posterior.nll(wide.mean), posterior.kl(wide), wide.kl(posterior)

    theirs, ours = both(values)
    torch.testing.assert_close(ours, theirs)
