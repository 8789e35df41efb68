"""Random shapes, strides, dtypes and options through the kernels, against the reference."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.kernels import latents, outputs
from tests.support.environment import INTERPRETED, Backend
from vae_fast import gaussian_kl, reconstruction_loss, sample_kl

# The fixtures set up what holds for all examples alike: the backend, the poison.
EXAMPLES = settings(
    max_examples=50 if INTERPRETED else 15,  # on a GPU nearly every example is compiled anew
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from(latents.DTYPES)


@st.composite
def layouts(draw, shape, expandable=True):
    """A function that fills a tensor of `shape`: dimensions permuted in memory, gaps, an offset, stride 0."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in shape]
    expanded = [draw(st.sampled_from([False] * 9 + [expandable])) for _ in shape]
    offset = draw(st.sampled_from([0, 0, 1, 4]))

    def fill(random):
        sizes = [1 if expanded[d] else shape[d] * steps[d] for d in order]
        memory = random(offset + math.prod(sizes))[offset:].view(sizes)
        tensor = memory.permute([order.index(d) for d in range(len(shape))])
        for d, step in enumerate(steps):
            if not expanded[d]:
                tensor = tensor[(slice(None),) * d + (slice(None, None, step),)]
        return tensor.expand(shape)

    return fill


@st.composite
def latent_cases(draw):
    shape = draw(SHAPES)
    with_prior = draw(st.booleans())
    tensors = [draw(layouts(shape)) for _ in range(4 if with_prior else 2)]
    options = {"logvar_clamp": draw(st.sampled_from([None, (-0.5, 0.75)]))}
    noise = draw(st.sampled_from(["seed", "eps", None]))
    if noise == "seed":
        options["seed"] = draw(st.integers(-(2**63), 2**64 - 1))
    elif noise == "eps":
        options["eps"] = draw(layouts(shape))
    return tensors, options, draw(DTYPES), draw(st.sampled_from(latents.REDUCTIONS))


@pytest.fixture
def backend(kernels_device):
    return Backend("triton", kernels_device)


@EXAMPLES
@given(case=latent_cases())
def test_latents(case, backend):
    tensors, options, dtype, reduction = case
    random = latents.drawer(backend.device, dtype)
    mu, logvar, *prior = [fill(random).detach().requires_grad_() for fill in tensors]
    prior = tuple(prior) or None
    p = latents.Posterior(mu, logvar, prior)
    clamp = options["logvar_clamp"]
    if len(options) == 1:
        kl = gaussian_kl(mu, logvar, prior=prior, reduction=reduction, **options)
        latents.check(p, None, kl, clamp=clamp, reduction=reduction)
        return
    noise = {"seed": options["seed"]} if "seed" in options else {"eps": options["eps"](random)}
    z, kl = sample_kl(mu, logvar, prior=prior, reduction=reduction, logvar_clamp=clamp, **noise)
    assert z.stride() == torch.empty_like(mu).stride()
    latents.check(p, z, kl, clamp=clamp, reduction=reduction, **noise)


@st.composite
def reconstruction_cases(draw):
    shape = draw(SHAPES)
    likelihood = draw(st.sampled_from(sorted(outputs.LIKELIHOODS)))
    params = [draw(layouts(shape)) for _ in range(outputs.LIKELIHOODS[likelihood])]
    return (
        likelihood,
        params,
        draw(layouts(shape)),
        draw(DTYPES),
        draw(DTYPES),
        draw(st.sampled_from(outputs.REDUCTIONS)),
    )


@EXAMPLES
@given(made=reconstruction_cases())
def test_reconstruction(made, backend):
    likelihood, params, target, dtype, target_dtype, reduction = made
    random = latents.drawer(backend.device, dtype)
    case = outputs.Case("the smallest", likelihood, backend)
    case.params = [fill(random).detach().requires_grad_() for fill in params]
    case.target = target(latents.drawer(backend.device, target_dtype, seed=1))
    case.check(reconstruction_loss(case.output, case.target, likelihood, reduction=reduction), reduction)
