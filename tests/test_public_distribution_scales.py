"""DiagonalGaussian in every scale against torch.distributions, in float64 and in the others."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from tests.ops.cases import values
from vae_fast import DiagonalGaussian, SoftClamp, Softplus, sample_kl, sample_kl_packed

# scale -> the mean and the standard deviation of its two tensors, from its definition
SCALES = {
    "logvar": lambda m, v: (m, torch.exp(v / 2)),
    "logstd": lambda m, v: (m, torch.exp(v)),
    "std": lambda m, v: (m, v),
    "softplus": lambda m, v: (m, F.softplus(v) + 1e-4),
    Softplus(0.1): lambda m, v: (m, F.softplus(v) + 0.1),
    SoftClamp(1.5): lambda m, v: (1.5 * torch.tanh(m / 1.5), torch.exp(1.5 * torch.tanh(v / 1.5))),
    SoftClamp(1.5, 0.01): lambda m, v: (1.5 * torch.tanh(m / 1.5), torch.exp(1.5 * torch.tanh(v / 1.5)) + 0.01),
}
DTYPE_PAIRS = list(itertools.permutations([torch.float16, torch.float32, torch.float64], 2))
scales = pytest.mark.parametrize("scale", SCALES, ids=str)


def parameters(device, seed=1, dtype=torch.float64):
    """mu, and a second tensor that is a standard deviation too: positive."""
    mu, v = (values(4, 3, device=device, seed=seed + i) for i in (0, 1))
    return [t.to(dtype).requires_grad_() for t in ((mu - 0.5) * 4, v + 0.2)]


def normal(scale, mu, v):
    return Normal(*SCALES[scale](mu, v))


def assert_same(ours, theirs, inputs):
    """Values and gradients."""
    torch.testing.assert_close(ours, theirs)
    weights = values(*ours.shape, device=ours.device) if ours.dim() else 1.0
    gradients = [
        torch.autograd.grad(
            (made * weights).sum(), inputs, allow_unused=True, materialize_grads=True, retain_graph=True
        )
        for made in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients)


@scales
def test_what_it_holds(scale, backend):
    given = parameters(backend.device)
    q, p = DiagonalGaussian(*given, scale=scale), normal(scale, *given)
    assert q.scale is scale
    for ours, theirs in ((q.mu, p.mean), (q.mode(), p.mean), (q.logvar, p.variance.log())):
        assert_same(ours, theirs, given)


@scales
def test_log_prob(scale, backend):
    given = parameters(backend.device)
    q, p = DiagonalGaussian(*given, scale=scale), normal(scale, *given)
    value = values(4, 3, device=backend.device, seed=5)
    assert_same(q.log_prob(value), p.log_prob(value).sum(1), given)
    z = q.rsample(seed=1)
    assert_same(q.log_prob(z), p.log_prob(z).sum(1), given)


@scales
def test_samples(scale, backend):
    given, eps = parameters(backend.device), values(4, 3, device=backend.device, seed=3)
    q, (mean, std) = DiagonalGaussian(*given, scale=scale), SCALES[scale](*given)
    assert_same(q.rsample(eps=eps), mean + std * eps, given)
    assert torch.equal(q.sample(seed=1), q.rsample(seed=1))
    for packed in (False, True):
        made = DiagonalGaussian.from_moments(torch.cat(given, 1), scale=scale) if packed else q
        function, tensors = (sample_kl_packed, [torch.cat(given, 1)]) if packed else (sample_kl, given)
        torch.testing.assert_close(made.sample_kl(seed=1), function(*tensors, scale=scale, seed=1))


@scales
def test_kl_to_the_standard_normal_and_to_tensors_of_the_same_scale(scale, backend):
    given, other = parameters(backend.device), parameters(backend.device, seed=7)
    q, p = DiagonalGaussian(*given, scale=scale), normal(scale, *given)
    assert_same(q.kl(reduction="sample"), kl_divergence(p, Normal(0.0, 1.0)).sum(1), given)
    theirs = kl_divergence(p, normal(scale, *other)).sum() / 4
    assert_same(q.kl(tuple(other)), theirs, given + other)


@pytest.mark.parametrize("other_scale", SCALES, ids=str)
@scales
def test_kl_to_another_posterior_of_any_scale(scale, other_scale, backend):
    given, other = parameters(backend.device), parameters(backend.device, seed=7)
    q, prior = DiagonalGaussian(*given, scale=scale), DiagonalGaussian(*other, scale=other_scale)
    theirs = kl_divergence(normal(scale, *given), normal(other_scale, *other))
    assert_same(q.kl(prior, reduction="sample"), theirs.sum(1), given + other)
    z, kl = q.sample_kl(prior=prior, seed=1)
    torch.testing.assert_close(kl, theirs.sum(1))
    torch.testing.assert_close(z, q.rsample(seed=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("scale", "other_scale"), [("std", "softplus"), ("logvar", "std"), ("softplus", "logstd")])
def test_kl_between_scales_of_halves_has_the_digits_of_float32(scale, other_scale, dtype, backend):
    given, other = (parameters(backend.device, seed=seed, dtype=dtype) for seed in (1, 7))
    q, prior = DiagonalGaussian(*given, scale=scale), DiagonalGaussian(*other, scale=other_scale)
    wide = [t.detach().double() for t in given + other]
    exact = kl_divergence(normal(scale, *wide[:2]), normal(other_scale, *wide[2:]))
    z, kl = q.sample_kl(prior=prior, seed=1)
    for actual in (kl, q.kl(prior, reduction="sample")):
        torch.testing.assert_close(actual.double(), exact.sum(1), rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(z, q.rsample(seed=1))
    assert z.dtype == dtype


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize(("scale", "other_scale"), [("logvar", "logvar"), ("std", "std"), ("std", "logstd")])
def test_kl_between_dtypes(scale, other_scale, dtypes, backend):
    given, other = (parameters(backend.device, s, dtype) for s, dtype in zip((1, 7), dtypes, strict=True))
    q, prior = DiagonalGaussian(*given, scale=scale), DiagonalGaussian(*other, scale=other_scale)
    exact = kl_divergence(*(normal(s, *(t.double() for t in v)) for s, v in ((scale, given), (other_scale, other))))
    z, kl = q.sample_kl(prior=prior, seed=1)
    assert kl.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    for actual in (kl, q.kl(prior, reduction="sample")):
        torch.testing.assert_close(actual.double(), exact.sum(1), rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(z, q.rsample(seed=1))
    for ours, theirs, tensor in zip(*(torch.autograd.grad(t.sum(), given + other) for t in (kl, exact)), given + other):
        assert ours.dtype == tensor.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtypes", [*itertools.permutations([torch.float32, torch.bfloat16], 2)], ids=str)
@scales
def test_a_mean_and_a_scale_of_two_dtypes(scale, dtypes, backend):
    given, other = (parameters(backend.device, seed) for seed in (1, 7))
    given, other = ([t.detach().to(dtype) for t, dtype in zip(pair, dtypes, strict=True)] for pair in (given, other))
    q, prior = DiagonalGaussian(*given, scale=scale), DiagonalGaussian(*other, scale=scale)
    p, r = (normal(scale, *(t.double() for t in pair)) for pair in (given, other))
    assert (q.mu.dtype, q.logvar.dtype, q.sample(seed=1).dtype) == (dtypes[0], dtypes[1], dtypes[0])
    value = values(4, 3, device=backend.device, seed=5).float()
    digits = {"rtol": 5e-6, "atol": 5e-6}
    torch.testing.assert_close(q.kl(reduction="sample").double(), kl_divergence(p, Normal(0.0, 1.0)).sum(1), **digits)
    torch.testing.assert_close(q.kl(prior, reduction="sample").double(), kl_divergence(p, r).sum(1), **digits)
    torch.testing.assert_close(q.log_prob(value).double(), p.log_prob(value.double()).sum(1), **digits)
    value.requires_grad_()
    torch.testing.assert_close(q.log_prob(value).double(), p.log_prob(value.double()).sum(1), **digits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_clamp_of_a_prior_of_halves_is_not_rounded_to_them(dtype, backend):
    given, other = (parameters(backend.device, seed, dtype) for seed in (1, 7))
    prior = DiagonalGaussian(*other, logvar_clamp=(0.301, 0.303))
    q, mean = DiagonalGaussian(*given), other[0].detach().double()
    clamped = Normal(mean, torch.exp(other[1].detach().double().clamp(0.301, 0.303) / 2))
    exact = kl_divergence(normal("logvar", *(t.detach().double() for t in given)), clamped).sum(1)
    torch.testing.assert_close(q.kl(prior, reduction="sample").double(), exact, rtol=3e-6, atol=1e-6)


def test_a_clamp_of_one_and_the_scale_of_the_other(backend):
    given, other = parameters(backend.device), parameters(backend.device, seed=7)
    q = DiagonalGaussian(*given, logvar_clamp=(0.4, 0.6))
    prior = DiagonalGaussian(*other, scale="std")
    clamped = Normal(given[0], torch.exp(given[1].clamp(0.4, 0.6) / 2))
    assert_same(q.kl(prior, reduction="sample"), kl_divergence(clamped, Normal(*other)).sum(1), given)
    assert_same(prior.kl(q, reduction="sample"), kl_divergence(Normal(*other), clamped).sum(1), given)


@scales
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype, scale, backend):
    """What is held has the dtype of the tensors; a density is computed from what they hold, in float32 at least."""
    given = parameters(backend.device, dtype=dtype)
    value = values(4, 3, device=backend.device, seed=5).to(dtype)
    q = DiagonalGaussian(*given, scale=scale)
    p = normal(scale, *(t.detach().double() for t in given))
    assert q.mu.dtype == q.logvar.dtype == q.sample(seed=1).dtype == dtype
    loose = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(q.mu.double(), p.mean, **loose)
    torch.testing.assert_close(q.logvar.double(), p.variance.log(), **loose)
    exact = p.log_prob(value.double()).sum(1)
    torch.testing.assert_close(q.log_prob(value).double(), exact, rtol=1e-5, atol=1e-5)


@scales
def test_full_graph_compile(scale):
    def step(mu, v):
        q = DiagonalGaussian(mu, v, scale=scale)
        return q.mu, q.logvar, q.log_prob(torch.zeros_like(mu))

    given = parameters("cpu")
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(compiled(*given), step(*given), strict=True):
        assert_same(ours, theirs, given)


@scales
def test_copies(scale):
    q = DiagonalGaussian(*(t.detach() for t in parameters("cpu")), scale=scale)
    for again in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        torch.testing.assert_close(again.kl(), q.kl())
        assert again.scale == scale


def test_what_it_was_made_with_stays():
    q = DiagonalGaussian(torch.zeros(4, 3), torch.ones(4, 3), logvar_clamp=(-1, 1))
    assert (q.logvar_clamp, q.scale) == ((-1, 1), "logvar")
    for name in ("logvar_clamp", "scale"):
        with pytest.raises(AttributeError):
            setattr(q, name, None)


def test_far_from_the_middle_the_mean_is_bounded_and_finite():
    mu, v = torch.tensor([[1e4, -1e4]]), torch.tensor([[1e4, -1e4]])
    q = DiagonalGaussian(mu, v, scale=SoftClamp(100.0))
    assert q.mode().tolist() == [[100.0, -100.0]]
    q = DiagonalGaussian(mu, v, scale=SoftClamp(5.0))
    torch.testing.assert_close(q.logvar, torch.tensor([[10.0, -10.0]]))
    torch.testing.assert_close(q.log_prob(q.mode()), torch.tensor([-math.log(2 * math.pi)]))


def test_a_log_variance_of_a_logarithm_needs_no_exponential():
    """Which is 0 or infinite in float32 long before twice the logarithm is."""
    logstd = torch.tensor([[-1000.0, 1000.0]])
    q = DiagonalGaussian(torch.zeros(1, 2), logstd, scale="logstd")
    assert torch.equal(q.logvar, 2 * logstd)
