"""Small float32 latents on the CPU take a shorter way, to the numbers of the long one."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from tests.ops.cases import values
from tests.ops.latent_ways import LAYOUTS, SHAPE, assert_alike, both_ways, differentiated, is_small, pair
from vae_fast import gaussian_kl, reparameterize, sample_kl, sample_kl_packed, use_backend
from vae_fast.checks import LATENT_REDUCTIONS
from vae_fast.eager.blocks import BLOCK


@pytest.fixture(autouse=True)
def _eager():
    with use_backend("eager"):
        yield


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=["z", "kl", "both"])
@pytest.mark.parametrize(("layout", "reduction"), [*itertools.product(LAYOUTS, LATENT_REDUCTIONS)])
def test_sample_and_kl(layout, reduction, used):
    mu, logvar = pair(layout)
    assert_alike(both_ways(lambda: sample_kl(mu, logvar, reduction=reduction)), (mu, logvar), used)


@pytest.mark.parametrize("reduction", LATENT_REDUCTIONS)
def test_a_batch_of_upstream_gradients(reduction):
    mu, logvar = pair()
    moments = torch.cat((mu, logvar), 1).detach().requires_grad_()
    for inputs, made in (((mu, logvar), sample_kl(mu, logvar, reduction=reduction)),
                         ((moments,), sample_kl_packed(moments, reduction=reduction))):  # fmt: skip
        assert is_small(made[0])
        upstream = [torch.stack([values(*o.shape, dtype=o.dtype, seed=k) for k in range(3)]) for o in made]
        options = {"retain_graph": True}
        batch = torch.autograd.grad(made, inputs, upstream, is_grads_batched=True, **options)
        separate = [torch.autograd.grad(made, inputs, one, **options) for one in zip(*upstream, strict=True)]
        torch.testing.assert_close(batch, tuple(map(torch.stack, zip(*separate, strict=True))))


@pytest.mark.parametrize("batched", [0, 1], ids=["z", "kl"])
def test_a_batch_of_one_upstream_gradient_beside_another(batched):
    mu, logvar = pair()
    upstream = [torch.ones_like(output) for output in sample_kl(mu, logvar)]

    def gradients(one):
        given = [one if k == batched else upstream[k] for k in range(2)]
        return torch.autograd.grad(made, (mu, logvar), given, retain_graph=True)

    made = sample_kl(mu, logvar)
    assert is_small(made[0])
    batch = torch.stack([k * upstream[batched] for k in range(3)])
    separate = tuple(map(torch.stack, zip(*map(gradients, batch), strict=True)))
    torch.testing.assert_close(torch.func.vmap(gradients)(batch), separate)


@pytest.mark.parametrize("reduction", LATENT_REDUCTIONS)
def test_the_kl_alone(reduction):
    mu, logvar = pair()
    assert_alike(both_ways(lambda: gaussian_kl(mu, logvar, reduction=reduction)), (mu, logvar))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sample_alone(layout):
    mu, logvar = pair(layout)
    assert_alike(both_ways(lambda: reparameterize(mu, logvar)), (mu, logvar))
    assert_alike(both_ways(lambda: reparameterize(mu, logvar, logvar_clamp=(-0.2, 0.2))), (mu, logvar))


CLAMPS = [(-0.2, 0.2), (-math.inf, 0.1), [-0.1, math.inf]]


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=["z", "kl", "both"])
@pytest.mark.parametrize("clamp", [None, *CLAMPS])
@pytest.mark.parametrize("learned", [(), (0,), (1,), (0, 1)], ids=["fixed", "mean", "logvar", "learned"])
@pytest.mark.parametrize("reduction", LATENT_REDUCTIONS)
def test_clamps_and_priors(reduction, learned, clamp, used):
    mu, logvar, *prior = *pair(), *pair(seed=3)
    moments = torch.cat((mu, logvar), 1).detach().requires_grad_()
    for k, tensor in enumerate(prior):
        tensor.requires_grad_(k in learned)
    options = {"prior": tuple(prior), "logvar_clamp": clamp, "reduction": reduction}
    given = [prior[k] for k in learned]
    assert_alike(both_ways(lambda: sample_kl(mu, logvar, **options)), (mu, logvar, *given), used)
    assert_alike(both_ways(lambda: sample_kl_packed(moments, **options)), (moments, *given), used)
    assert_alike(both_ways(lambda: gaussian_kl(mu, logvar, **options)), (mu, logvar, *given))


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("reduction", LATENT_REDUCTIONS)
def test_packed(dim, reduction):
    moments = torch.cat([t.detach() for t in pair()], dim).requires_grad_()
    assert_alike(both_ways(lambda: sample_kl_packed(moments, dim, reduction=reduction)), (moments,))
    options = {"reduction": reduction, "logvar_clamp": (-0.2, 0.2)}
    assert_alike(both_ways(lambda: sample_kl_packed(moments, dim, **options)), (moments,))
    assert not is_small(sample_kl_packed(moments, dim - 3)[0])


def test_a_generator():
    mu, logvar = pair()
    moments = torch.cat((mu, logvar), 1).detach().requires_grad_()
    for inputs, call in (
        ((mu, logvar), functools.partial(sample_kl, mu, logvar)),
        ((mu, logvar), functools.partial(reparameterize, mu, logvar)),
        ((moments,), functools.partial(sample_kl_packed, moments)),
    ):
        assert_alike(both_ways(lambda call=call: call(generator=torch.Generator().manual_seed(3))), inputs)
    generator = torch.Generator().manual_seed(3)
    first, second = (reparameterize(mu, logvar, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


FORMATS = {
    "channels_last": lambda t: t.unsqueeze(-1).to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=["z", "kl", "both"])
@pytest.mark.parametrize("layout", FORMATS)
def test_packed_gradients_have_the_strides_of_the_long_way(layout, used):
    moments = FORMATS[layout](values(4, 6, 5, dtype=torch.float32) - 0.5).detach().requires_grad_()
    gradients = []
    for dim in (1, 1 - moments.dim()):
        torch.manual_seed(0)
        gradients += differentiated(sample_kl_packed(moments, dim), (moments,), used)
    torch.testing.assert_close(*gradients)
    assert gradients[0].stride() == gradients[1].stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_given_noise(layout):
    mu, logvar = pair(layout)
    moments = torch.cat((mu, logvar), 1).detach().requires_grad_()
    eps = values(*SHAPE, dtype=torch.float32, seed=3) - 0.5
    before = eps.clone()
    for inputs, call in (
        ((mu, logvar), functools.partial(sample_kl, mu, logvar)),
        ((mu, logvar), functools.partial(reparameterize, mu, logvar)),
        ((moments,), functools.partial(sample_kl_packed, moments)),
    ):
        assert_alike(both_ways(lambda call=call: call(eps=eps)), inputs)
    assert torch.equal(eps, before)


def test_bad_noise_takes_the_long_way_to_its_error():
    mu, logvar = pair()
    moments = torch.cat((mu, logvar), 1).detach().requires_grad_()
    for eps, message in (
        (mu, "requires a gradient"), (mu[:1].detach(), "they must be equal"), (0.5, "eps is"),
    ):  # fmt: skip
        for call in (functools.partial(sample_kl, mu, logvar), functools.partial(sample_kl_packed, moments)):
            with pytest.raises((TypeError, ValueError), match=message):
                call(eps=eps)


def test_what_takes_the_long_way():
    mu, logvar = pair()
    assert is_small(sample_kl(mu, logvar)[0])
    for options in (
        {"seed": 0}, {"eps": mu.detach().double()}, {"prior": (mu[:1], logvar[:1])}, {"prior": (mu, logvar.bfloat16())},
        {"num_samples": BLOCK // mu.numel() + 1},
        {"num_samples": 2, "eps": values(SHAPE[0], 2, *SHAPE[1:], dtype=torch.float32).transpose(0, 1)},
    ):  # fmt: skip
        assert not is_small(sample_kl(mu, logvar, **options)[0]), options
    assert not is_small(sample_kl(*pair(dtype=torch.float64))[0])
    assert not is_small(sample_kl(*pair(dtype=torch.bfloat16))[0])
    assert not is_small(sample_kl(mu, pair("transposed")[1])[0])
    assert is_small(sample_kl(*pair(shape=(1, BLOCK, 1)))[0])
    assert not is_small(sample_kl(*pair(shape=(1, BLOCK + 1, 1)))[0])
    with torch.profiler.profile() as profile:
        sample_kl(mu, logvar)
    assert "vae_fast::gaussian_forward" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize(
    "call", [gaussian_kl, lambda m, v: sample_kl(m, v, reduction="sum")[1]], ids=["kl", "sample_kl"]
)
def test_a_second_backward_pass_and_a_second_derivative(call):
    mu, logvar = pair()
    kl = call(mu, logvar)
    first = torch.autograd.grad(3 * kl, (mu, logvar), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(3 * kl, (mu, logvar), retain_graph=True), first)
    (slope,) = torch.autograd.grad(kl, logvar, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        slope.sum().backward()


@pytest.mark.parametrize("frozen", [0, 1], ids=["mu", "logvar"])
def test_one_of_them_may_be_frozen(frozen):
    tensors = pair()
    tensors[frozen].requires_grad_(False)
    gaussian_kl(*tensors, reduction="sum").backward()
    expected = tensors[0] if frozen else torch.expm1(tensors[1]) / 2
    torch.testing.assert_close(tensors[1 - frozen].grad, expected.detach())
    assert tensors[frozen].grad is None


def test_the_gradient_of_z_in_mu_can_be_differentiated_again():
    """It is that of z: a penalty on a function of z alone needs nothing of ours."""
    mu, logvar = pair()
    for z, _ in both_ways(lambda: sample_kl(mu, logvar)):
        (slope,) = torch.autograd.grad(z.square().sum(), mu, create_graph=True)
        torch.testing.assert_close(torch.autograd.grad(slope.sum(), mu)[0], torch.full_like(mu, 2.0))


def test_bad_options_take_the_long_way_to_their_errors():
    mu, logvar = pair()
    for scale in (["logvar"], np.array("logvar")):
        with pytest.raises(ValueError, match="scale is"):
            gaussian_kl(mu, logvar, scale=scale)
    with pytest.raises(ValueError, match="reduction is"):
        sample_kl(mu, logvar, reduction="average")
    with pytest.raises(ValueError, match="they must be equal"):
        sample_kl(mu, logvar[:, :2])
    with pytest.raises(ValueError, match="logvar_clamp is"):  # as on the long way, which looks at the noise last
        reparameterize(mu, logvar, logvar_clamp=(1, -1), generator=0)


def test_without_gradients():
    with torch.no_grad():
        z, kl = sample_kl(*pair())
    assert not z.requires_grad
    assert not kl.requires_grad
