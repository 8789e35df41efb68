"""The second plain call of a kind is played: the same bits as the long way, with every option."""

import contextlib
import functools
import itertools

import pytest
import torch

from tests.ops.cases import CASES, case_id, tupled, values
from tests.ops.played import CALLS, generator, kinds_forgotten, likelihood, node, tensor
from vae_fast import (
    Categorical,
    Huber,
    Softplus,
    checks,
    elbo_loss,
    gaussian_kl,
    reconstruction_loss,
    reparameterize,
    sample_kl,
    sample_kl_packed,
)
from vae_fast.checks import LATENT_REDUCTIONS
from vae_fast.likelihoods import LIKELIHOODS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALARS = ("sum", "mean", "batchmean")


def both_ways(call, inputs):
    """Outputs and gradients of the long way, and of each turn of what is played, of the same noise."""
    found = []
    for way in ("Ordinary", *CALLS * ("_Played",)):
        with kinds_forgotten() if way == "Ordinary" else contextlib.nullcontext():
            torch.manual_seed(7)
            outputs = tupled(call())
        assert f"{way}Backward" in map(node, outputs)
        upstream = [torch.full_like(o, 1.5) for o in outputs]
        first = torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)
        again = torch.autograd.grad(outputs, inputs, upstream)  # which makes them again
        found.append((*(o.detach() for o in outputs), *first, *again))
    return found


def assert_same_bits(found):
    for long, *played in zip(*found, strict=True):
        for each in played:
            assert each.stride() == long.stride()
            assert each.dtype == long.dtype
            assert torch.equal(each, long)


@pytest.mark.parametrize("reduction", LATENT_REDUCTIONS)
def test_latents(reduction, device):
    mu, logvar = (tensor(device, 4, 3, 5, seed=seed) for seed in (1, 2))
    moments = tensor(device, 4, 6, 5)
    for call, inputs in (
        (functools.partial(sample_kl, mu, logvar), (mu, logvar)),
        (functools.partial(sample_kl_packed, moments), (moments,)),
        (functools.partial(gaussian_kl, mu, logvar), (mu, logvar)),
    ):
        assert_same_bits(both_ways(functools.partial(call, reduction=reduction), inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, device):
    mu, logvar = (tensor(device, 4, 5, dtype=dtype, seed=seed) for seed in (1, 2))
    assert_same_bits(both_ways(lambda: sample_kl(mu, logvar), (mu, logvar)))
    logits, target = likelihood(device, "bernoulli", dtype)
    assert_same_bits(both_ways(lambda: reconstruction_loss(logits, target.float()), (logits,)))


@pytest.mark.parametrize("dtypes", [*itertools.permutations(DTYPES[:3], 2)], ids=str)
def test_mixed_dtypes(dtypes, device):
    mu, logvar = (tensor(device, 4, 5, dtype=dtype, seed=seed) for seed, dtype in enumerate(dtypes))
    target = tensor(device, 4, 5).detach()
    for call in (
        lambda: sample_kl(mu, logvar),
        lambda: gaussian_kl(mu, logvar),
        lambda: reconstruction_loss((mu, logvar), target, "gaussian"),
    ):
        assert_same_bits(both_ways(call, (mu, logvar)))


@pytest.mark.parametrize("reduction", SCALARS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_losses(name, reduction, device):
    output, target = likelihood(device, name)
    call = functools.partial(reconstruction_loss, output, target, name, reduction=reduction)
    assert_same_bits(both_ways(call, tupled(output)))


@pytest.mark.parametrize("shape", [(5,), ()], ids=["per_sample", "averaged"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_whole_loss(name, shape, device):
    output, target = likelihood(device, name)
    kl = tensor(device, *shape)
    call = functools.partial(elbo_loss, output, target, kl, likelihood=name, beta=2.0)
    assert_same_bits(both_ways(call, (kl, *tupled(output))))


@pytest.mark.parametrize("dtype", checks.INTEGERS, ids=str)
@pytest.mark.parametrize("name", ["bernoulli", "mse", "poisson"])  # bytes are pixels, and counts
def test_targets_of_integers(name, dtype, device):
    output, target = likelihood(device, name)
    target = target.to(dtype)
    assert_same_bits(both_ways(lambda: reconstruction_loss(output, target, name), (output,)))
    kl = tensor(device, 5)
    assert_same_bits(both_ways(lambda: elbo_loss(output, target, kl, likelihood=name), (kl, output)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_learned_scale(dtype, device):
    mean, target = tensor(device, 5, 3, dtype=dtype), values(5, 3, device=device, seed=2)
    scale = torch.tensor(0.3, device=device, requires_grad=True)
    for name in ("gaussian", "laplace", "student_t"):
        call = functools.partial(reconstruction_loss, (mean, scale), target, name)
        assert_same_bits(both_ways(call, (mean, scale)))


def test_outputs_of_which_nobody_asks_the_gradient(device):
    """None reaches what they alone depend on: not even zeros."""
    a, b, c, d = (tensor(device, 4, 5, seed=seed) for seed in range(4))
    target = values(4, 5, device=device, dtype=torch.float32, seed=5)

    def gradients(call, inputs):
        for used in range(len(call())):
            yield from torch.autograd.grad(call()[used].sum(), inputs, allow_unused=True)

    for call, inputs in (
        (lambda: sample_kl(a, b, prior=(c, d), seed=1), (a, b, c, d)),
        (lambda: elbo_loss(a, target, b.sum(1)), (a, b)),
    ):
        with kinds_forgotten():
            wanted = list(gradients(call, inputs))
        assert None in wanted
        for _ in range(CALLS):
            for made, expected in zip(gradients(call, inputs), wanted, strict=True):
                assert made is expected is None or torch.equal(made, expected)


@pytest.mark.parametrize("beta", [3.0, "a tensor"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_sum_of_the_two_parts(name, beta, device):
    """Of which one gradient goes to both, and no beta to the kl."""
    output, target = likelihood(device, name)
    kl = tensor(device, 5)
    beta = beta if isinstance(beta, float) else torch.tensor(3.0, device=device)

    def gradients():
        losses = elbo_loss(output, target, kl, likelihood=name, beta=beta)
        loss = losses.reconstruction + losses.kl
        for retained in (True, False):
            yield from torch.autograd.grad(loss, (kl, *tupled(output)), retain_graph=retained)

    with kinds_forgotten():
        wanted = list(gradients())
    assert torch.equal(wanted[0], torch.full_like(kl, 1 / 5))
    for _ in range(CALLS):
        assert all(map(torch.equal, gradients(), wanted))


def test_no_launch_of_a_known_kind_is_looked_up(device, monkeypatch):
    """Neither of forward, nor of the gradients that it has made, nor of those that are made again."""
    from vae_fast.kernels import launching

    mu, logvar, moments = (tensor(device, 5, size) for size in (7, 7, 16))
    target = values(5, 7, device=device, dtype=torch.float32, seed=3)
    calls = (
        lambda: sample_kl(mu, logvar, seed=1),
        lambda: sample_kl_packed(moments, seed=1),
        lambda: reconstruction_loss(mu, target),
        lambda: reconstruction_loss((mu, logvar), target, "gaussian", reduction="sample"),
        lambda: reconstruction_loss(mu, torch.arange(5, device=device), "categorical"),
        lambda: elbo_loss(mu, target, logvar.sum(1)),
        lambda: torch.add(*elbo_loss(mu, target, logvar.sum(1), beta=2.0)[1:]),
    )

    def both_passes():
        for call in calls:
            outputs = tupled(call())
            upstream, given = [torch.ones_like(o) for o in outputs], (mu, logvar, moments)
            for retained in (True, False):
                torch.autograd.grad(outputs, given, upstream, retain_graph=retained, allow_unused=True)

    for _ in range(CALLS):
        both_passes()
    monkeypatch.setattr(launching, "_kind", lambda *_: pytest.fail("looked up"))
    both_passes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_option(case, dtype, device):
    leaves = case.leaves(device, dtype)
    assert_same_bits(both_ways(lambda: case.call(*leaves), leaves))


DRAWN = {
    "binarize": lambda a, b, x: reconstruction_loss(a, x, binarize=True),
    "binarize by a generator": lambda a, b, x: reconstruction_loss(a, x, binarize=True, generator=generator(x)),
    "samples": lambda a, b, x: sample_kl(a, b, num_samples=2, kl="monte_carlo", logvar_clamp=(-0.5, 0.5)),
    "a generator": lambda a, b, x: reparameterize(a, b, scale=Softplus(0.5), generator=generator(x)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn(name, device):
    a, b, target = tensor(device, 4, 5), tensor(device, 4, 5, seed=2), values(4, 5, device=device, dtype=torch.float32)
    inputs = (a,) if "binarize" in name else (a, b)
    assert_same_bits(both_ways(lambda: DRAWN[name](a, b, target), inputs))
    torch.manual_seed(1)
    first, second = (tupled(DRAWN[name](a, b, target))[0] for _ in range(2))
    assert torch.equal(first, second) == ("generator" in name)


def test_nothing_is_drawn_beside_noise_that_is_given(device):
    mu, eps = tensor(device, 4, 5), values(4, 5, device=device, dtype=torch.float32)
    torch.manual_seed(1)
    wanted = torch.rand(1, device=device)
    torch.manual_seed(1)
    for _ in range(CALLS):
        reparameterize(mu, mu * 2, eps=eps)
    assert torch.equal(torch.rand(1, device=device), wanted)


def test_one_tensor_given_twice(device):
    """It has no kind: what tells kinds apart takes none for another's place."""
    mu = tensor(device, 4, 5)
    for _ in range(CALLS):
        kl = gaussian_kl(mu, mu)
        assert node(kl) == "OrdinaryBackward"
        (twice,) = torch.autograd.grad(kl, mu)
        assert torch.equal(twice, sum(torch.autograd.grad(gaussian_kl(mu, mu + 0), mu)))


def test_other_options_are_of_another_kind(device):
    """One after the other, twice over: none is played as another."""
    mu, v, target = tensor(device, 4, 5), tensor(device, 4, 5, seed=2), values(4, 5, device=device, dtype=torch.float32)
    weights = torch.tensor([0.0, 1, 2, 3], device=device), target > 0.4, None
    calls = [
        *(functools.partial(gaussian_kl, mu, v, reduction=r) for r in LATENT_REDUCTIONS),
        *(functools.partial(drawn_alike, mu, v, reduction=r) for r in LATENT_REDUCTIONS),
        *(functools.partial(drawn_alike, mu, v, num_samples=k) for k in (1, 2, 3)),
        *(functools.partial(gaussian_kl, mu, v, scale=s) for s in ("logstd", "std", Softplus(0.1), Softplus(0.2))),
        *(functools.partial(gaussian_kl, mu, v, logvar_clamp=c) for c in ((-0.5, 0.5), (0.1, 0.5), (0.1, 0.6))),
        *(functools.partial(gaussian_kl, mu, v, logvar_clamp=[c, 0.6]) for c in (-0.5, 0.5)),
        *(functools.partial(gaussian_kl, mu, v, prior=(p, p * 2)) for p in (mu.detach(), mu.detach()[:1], mu[:1])),
        *(functools.partial(gaussian_kl, mu, v, prior=[p, p * 2]) for p in (v.detach(), v.detach()[:1], v[:1])),
        functools.partial(gaussian_kl, by_columns(mu), v),
        functools.partial(reconstruction_loss, mu, by_columns(target)),
        *(functools.partial(reconstruction_loss, [mu, s], target, "laplace") for s in (v, v[:1], v.detach()[0, 0])),
        *(functools.partial(reconstruction_loss, mu, target, name) for name in ("bernoulli", "mse", "l1", "huber")),
        *(functools.partial(reconstruction_loss, mu, target, Huber(delta)) for delta in (0.1, 0.2)),
        *(functools.partial(reconstruction_loss, mu, target, weight=w) for w in weights),
        *(functools.partial(reconstruction_loss, mu, target, target_scale=s) for s in (0.5, 0.25, 2)),
        *(functools.partial(reconstruction_loss, mu, t) for t in (target > 0.5, target.round().to(torch.uint8))),
        functools.partial(reconstruction_loss, mu, target, binarize=True, seed=2),
        *(functools.partial(elbo_loss, mu, target, v.sum(1), beta=b) for b in (0.5, 2, torch.tensor(3.0).to(device))),
        *(functools.partial(elbo_loss, mu, target, kl) for kl in (v.sum(), v.detach().sum(1), v.sum(1).double())),
        *(functools.partial(reconstruction_loss, mu, target[:, 0].long(), Categorical(k)) for k in (None, 0, 1)),
    ]
    with kinds_forgotten():
        wanted = [[t.detach() for t in tupled(call())] for call in calls]
    for call, expected in zip(CALLS * calls, CALLS * wanted, strict=True):
        assert all(torch.equal(a.detach(), b) for a, b in zip(tupled(call()), expected, strict=True))
    assert len({tuple(first.flatten().tolist()) for first, *_ in wanted}) > 30  # they do differ


def drawn_alike(mu, logvar, **options):
    """`sample_kl`, of a seed that nobody gives."""
    torch.manual_seed(5)
    return sample_kl(mu, logvar, **options)


def by_columns(tensor):
    """The same numbers, which lie column by column."""
    return tensor.t().contiguous().t()
