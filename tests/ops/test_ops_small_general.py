"""Small float32 latents on the CPU, of every scale, KL and number of samples: the short way gives what the long does.

The long way is held against the reference by the kernels' own tests, with a seed, which only it takes.
"""

import functools
import itertools

import pytest
import torch

from tests.kernels.scaled import SCALES
from tests.ops.cases import values
from tests.ops.latent_ways import LAYOUTS, SHAPE, assert_alike, both_ways, differentiated, is_small, pair
from vae_fast import SoftClamp, Softplus, gaussian_kl, reparameterize, sample_kl, sample_kl_packed, use_backend
from vae_fast.checks import LATENT_REDUCTIONS

ASKED = [("closed_form", None), ("closed_form", 3), ("monte_carlo", None), ("monte_carlo", 3), ("monte_carlo", 1)]


@pytest.fixture(autouse=True)
def _eager():
    with use_backend("eager"):
        yield


def scaled_pair(scale, layout="rows", seed=1):
    """A second tensor that is positive where it is a standard deviation."""
    mu, raw = pair(layout, seed=seed)
    return mu, (raw.detach().exp() if scale == "std" else raw.detach()).requires_grad_()


@pytest.mark.parametrize(("kl", "num_samples"), ASKED)
@pytest.mark.parametrize("learned", [None, (), (0,), (1,), (0, 1)], ids=["normal", "fixed", "mean", "raw", "learned"])
@pytest.mark.parametrize("scale", SCALES)
def test_sample_and_kl(scale, learned, kl, num_samples):
    mu, raw = scaled_pair(scale)
    moments = torch.cat((mu, raw), 1).detach().requires_grad_()
    prior = None if learned is None else scaled_pair(scale, seed=3)
    for k, tensor in enumerate(prior or ()):
        tensor.requires_grad_(k in learned)
    given = [prior[k] for k in learned or ()]
    options = {"scale": SCALES[scale], "kl": kl, "num_samples": num_samples, "prior": prior}
    for used in ((0,), (1,), (0, 1)):
        assert_alike(both_ways(lambda: sample_kl(mu, raw, **options)), (mu, raw, *given), used)
        assert_alike(both_ways(lambda: sample_kl_packed(moments, **options)), (moments, *given), used)


@pytest.mark.parametrize(("kl", "num_samples"), ASKED)
@pytest.mark.parametrize(("layout", "reduction"), [*itertools.product(LAYOUTS, LATENT_REDUCTIONS)])
def test_layouts_and_reductions(layout, reduction, kl, num_samples):
    mu, raw = scaled_pair("softplus", layout)
    options = {"kl": kl, "num_samples": num_samples, "reduction": reduction}
    in_layout = num_samples is None  # PyTorch's sum over the samples has a layout of its own
    call = functools.partial(sample_kl, mu, raw, scale="softplus", **options)
    assert_alike(both_ways(call), (mu, raw), in_layout=in_layout)
    if (kl, num_samples) != ASKED[0]:
        call = functools.partial(sample_kl, mu, raw, logvar_clamp=(-0.2, 0.2), **options)
        assert_alike(both_ways(call), (mu, raw), in_layout=in_layout)


@pytest.mark.parametrize("scale", SCALES)
def test_one_of_both(scale):
    mu, raw = scaled_pair(scale)
    for num_samples in (None, 3):
        options = {"scale": SCALES[scale], "num_samples": num_samples}
        assert_alike(both_ways(lambda options=options: reparameterize(mu, raw, **options)), (mu, raw))
    for reduction in LATENT_REDUCTIONS:
        options = {"scale": SCALES[scale], "reduction": reduction}
        assert_alike(both_ways(lambda options=options: gaussian_kl(mu, raw, **options)), (mu, raw))


@pytest.mark.parametrize("num_samples", [None, 3])
def test_noise_from_a_generator_or_given(num_samples):
    mu, raw = scaled_pair("softplus")
    shape = SHAPE if num_samples is None else (num_samples, *SHAPE)
    eps = values(*shape, dtype=torch.float32, seed=3) - 0.5
    call = functools.partial(sample_kl, mu, raw, scale="softplus", kl="monte_carlo", num_samples=num_samples)
    assert_alike(both_ways(lambda: call(eps=eps)), (mu, raw))
    assert_alike(both_ways(lambda: call(generator=torch.Generator().manual_seed(3))), (mu, raw))


@pytest.mark.parametrize(("kl", "num_samples"), ASKED)
@pytest.mark.parametrize("reduction", LATENT_REDUCTIONS)
def test_a_batch_of_upstream_gradients(reduction, kl, num_samples):
    mu, raw = scaled_pair("SoftClamp")
    made = sample_kl(mu, raw, scale=SoftClamp(1.5), kl=kl, num_samples=num_samples, reduction=reduction)
    assert is_small(made[0])
    upstream = [torch.stack([values(*o.shape, dtype=o.dtype, seed=k) for k in range(3)]) for o in made]

    def gradients(*one):
        return torch.autograd.grad(made, (mu, raw), one, retain_graph=True)

    separate = tuple(map(torch.stack, zip(*map(gradients, *upstream), strict=True)))
    torch.testing.assert_close(torch.func.vmap(gradients)(*upstream), separate)
    batch = torch.autograd.grad(made, (mu, raw), upstream, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batch, separate)


def test_a_second_derivative():
    mu, raw = scaled_pair("softplus")
    for call in (gaussian_kl, lambda *args, **scale: sample_kl(*args, **scale, num_samples=2)[0].sum()):
        made = call(mu, raw, scale="softplus")
        (slope,) = torch.autograd.grad(made, raw, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated twice"):
            slope.sum().backward()


def test_the_gradient_in_mu_through_z_alone_is_that_of_z_itself():
    """Which may be differentiated once more: nothing of ours has been computed of it."""
    mu, raw = scaled_pair("softplus")
    z = reparameterize(mu, raw, scale="softplus")
    assert is_small(z)
    (slope,) = torch.autograd.grad(z.square().sum(), mu, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), mu)
    torch.testing.assert_close(second, torch.full_like(mu, 2.0))


def test_a_change_in_place_is_noticed():
    mu, raw = scaled_pair("softplus")
    z, _ = sample_kl(mu, raw, scale="softplus")
    with torch.no_grad():
        raw.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        differentiated((z,), (raw,), (0,))


def test_bad_options_take_the_long_way_to_their_errors():
    mu, raw = scaled_pair("softplus")
    for options, message in (
        ({"scale": "variance"}, "scale is 'variance'"),
        ({"scale": Softplus}, "scale is"),
        ({"scale": "std", "logvar_clamp": (-1, 1)}, "expected scale 'logvar'"),
        ({"scale": Softplus(), "logvar_clamp": (-1, 1)}, "expected scale 'logvar'"),
        ({"kl": "exact"}, "kl is 'exact'"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": True}, "num_samples is bool"),
        ({"num_samples": 2, "eps": torch.zeros(3, *SHAPE)}, "num_samples times mu's shape"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            sample_kl(mu, raw, **options)
