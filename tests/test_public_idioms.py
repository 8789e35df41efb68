"""Idioms with masks, time steps, classes and densities at a given z, as the README writes them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from tests.ops.cases import values
from vae_fast import Categorical, DiagonalGaussian, gaussian_kl, reconstruction_loss


def leaves(backend, *shapes):
    return [(values(*shape, device=backend.device, seed=i) * 2 - 1).requires_grad_() for i, shape in enumerate(shapes)]


def mask(backend, *shape):
    return values(*shape, device=backend.device, seed=9) > 0.4


def same(ours, theirs, tensors):
    """The loss and its gradients."""
    torch.testing.assert_close(ours, theirs, check_dtype=False)
    torch.testing.assert_close(*(torch.autograd.grad(loss, tensors) for loss in (ours, theirs)))


@pytest.mark.parametrize("channels", ["last", "first"])
def test_the_kl_of_each_step_of_a_sequence(channels, backend):
    """As chunks of a recurrent network's moments, with a learned prior for each step."""
    tensors = leaves(backend, (4, 5, 6), (4, 5, 6))
    steps = mask(backend, 4, 5)
    (mu, logvar), (m, v) = (t.chunk(2, -1) for t in tensors)
    elements = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(m, (v / 2).exp()))
    theirs = (elements.sum(-1) * steps).sum() / steps.sum()
    if channels == "last":
        assert mu.flatten(0, 1).data_ptr() == tensors[0].data_ptr()
        mu, logvar, m, v = (t.flatten(0, 1) for t in (mu, logvar, m, v))
        kl = gaussian_kl(mu, logvar, prior=(m, v), reduction="sample").view(4, 5)
        ours = (kl * steps).sum() / steps.sum()
    else:
        mu, logvar, m, v = (t.mT for t in (mu, logvar, m, v))
        ours = (gaussian_kl(mu, logvar, prior=(m, v), reduction="none") * steps[:, None]).sum() / steps.sum()
    same(ours, theirs, tensors)


@pytest.mark.parametrize("masked", [False, True])
def test_the_density_of_a_z_that_has_a_gradient(masked, backend):
    """VITS: the flow's z under the text's prior, channels first."""
    mu, logvar, z = tensors = leaves(backend, (4, 3, 5), (4, 3, 5), (4, 3, 5))
    weight = mask(backend, 4, 1, 5) if masked else torch.ones(4, 1, 5, device=backend.device)
    theirs = (Normal(mu, (logvar / 2).exp()).log_prob(z) * weight).flatten(1).sum(1)
    if masked:
        output, zero = (mu - z, logvar), torch.zeros_like(z)
        ours = -reconstruction_loss(output, zero, "gaussian", weight=weight, reduction="sample")
    else:
        ours = DiagonalGaussian(mu, logvar).log_prob(z)
    torch.testing.assert_close(ours, theirs, check_dtype=False)
    same(ours.sum(), theirs.sum(), tensors)


def test_the_absolute_error_over_a_learned_scale(backend):
    """LPIPSWithDiscriminator of latent-diffusion, without its perceptual loss."""
    output, scale = tensors = leaves(backend, (4, 3, 2, 2), ())
    x = values(4, 3, 2, 2, device=backend.device, seed=7)
    theirs = ((x - output).abs() / scale.exp() + scale).sum() / 4
    same(reconstruction_loss((output, scale), x, "laplace") - 12 * math.log(2), theirs, tensors)


def test_a_weight_of_positives(backend):
    """The edges of a graph auto-encoder."""
    (logits,) = tensors = leaves(backend, (6, 6))
    x = mask(backend, 6, 6).to(logits.dtype)
    theirs = F.binary_cross_entropy_with_logits(logits, x, pos_weight=torch.tensor(3.5, device=backend.device))
    same(reconstruction_loss(logits, x, weight=torch.where(x > 0, 3.5, 1.0), reduction="mean"), theirs, tensors)


def test_classes_along_the_channels(backend):
    (logits,) = tensors = leaves(backend, (4, 7, 2, 3))
    classes = (values(4, 2, 3, device=backend.device, seed=7) * 7).long()
    theirs = F.cross_entropy(logits, classes, reduction="sum") / 4
    same(reconstruction_loss(logits.movedim(1, -1), classes, "categorical"), theirs, tensors)


def test_the_mean_over_the_tokens_that_are_no_padding(backend):
    """The next token of each, so neither logits nor targets are contiguous."""
    (logits,) = tensors = leaves(backend, (4, 5, 7))
    tokens = (values(4, 5, device=backend.device, seed=7) * 7).long()
    a, x = logits[:, :-1], tokens[:, 1:]
    assert (x == 0).any()
    theirs = F.cross_entropy(a.flatten(0, 1), x.flatten(), ignore_index=0)
    ours = reconstruction_loss(a, x, Categorical(ignore_index=0), reduction="sum") / (x != 0).sum()
    same(ours, theirs, tensors)


def test_pixels_from_minus_one_to_one_under_a_discretized_logistic(backend):
    """Salimans et al. 2017 and NVAE: the mass between x - 1/255 and x + 1/255, the tails at -1 and 1."""
    mean, log_scale = tensors = leaves(backend, (4, 6), (4, 6))
    x = (values(4, 6, device=backend.device, seed=7) * 255).round()
    x[0] = torch.tensor([0.0, 255.0, 1.0, 254.0, 127.0, 128.0])
    centred, scale = 2 * x / 255 - 1 - mean, log_scale.exp()
    above, below = (torch.sigmoid((centred + half) / scale) for half in (1 / 255, -1 / 255))
    mass = torch.where(x == 255, 1.0, above) - torch.where(x == 0, 0.0, below)
    output = (mean + 1) / 2, log_scale - math.log(2)
    same(reconstruction_loss(output, x / 255, "discretized_logistic"), -mass.log().sum() / 4, tensors)
