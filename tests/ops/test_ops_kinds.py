"""The second plain call of a kind is played: the same bits as the long way, which takes whatever is not plain."""

import contextlib
import functools
import gc
import itertools
import math
import re
import weakref

import pytest
import torch

from tests.ops.cases import CASES, case_id, values
from tests.support.environment import BACKENDS
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
    use_backend,
)
from vae_fast.checks import LATENT_REDUCTIONS
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops import kinds

KERNELS = [backend for backend in BACKENDS if backend.name == "triton"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALARS = ("sum", "mean", "batchmean")
CALLS = 4  # the first is checked, its launches are written down in the second of the kernels' own kind


@pytest.fixture(autouse=True, params=KERNELS, ids=str)
def device(request):
    with use_backend("triton"):
        yield request.param.device


def tensor(device, *shape, dtype=torch.float32, seed=1):
    return values(*shape, device=device, dtype=dtype, seed=seed).requires_grad_()


def likelihood(device, name, dtype=torch.float32):
    """(Parameters, target) of 5 x 7 elements."""
    row = LIKELIHOODS[name]
    drawn = [values(5, 7, device=device, dtype=torch.float32, seed=3 + k) for k in range(len(row.parameters))]
    made = drawn if row.link is None else _all(row.link(*drawn))
    params = tuple(p.to(dtype).requires_grad_() for p in made)
    classes = row.domain == "classes"
    target = torch.arange(5, device=device) if classes else values(5, 7, device=device, seed=2).round().to(dtype)
    return params if len(params) > 1 else params[0], target


def _all(made):
    return made if isinstance(made, tuple) else (made,)


def node(output):
    return output.grad_fn.name()


def find_none(*call, find=kinds.find):
    """In place of `find`: what is kept is not found."""
    return find(*call)[0], None


def both_ways(monkeypatch, call, inputs):
    """Outputs and gradients of the long way, and of each turn of what is played, of the same noise."""
    found = []
    for way in ("Ordinary", *CALLS * ("_Played",)):
        with monkeypatch.context() as patch:
            if way == "Ordinary":
                patch.setattr(kinds, "find", find_none)
            torch.manual_seed(7)
            outputs = _all(call())
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
def test_latents(reduction, device, monkeypatch):
    mu, logvar = (tensor(device, 4, 3, 5, seed=seed) for seed in (1, 2))
    moments = tensor(device, 4, 6, 5)
    for call, inputs in (
        (functools.partial(sample_kl, mu, logvar), (mu, logvar)),
        (functools.partial(sample_kl_packed, moments), (moments,)),
        (functools.partial(gaussian_kl, mu, logvar), (mu, logvar)),
    ):
        assert_same_bits(both_ways(monkeypatch, functools.partial(call, reduction=reduction), inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, device, monkeypatch):
    mu, logvar = (tensor(device, 4, 5, dtype=dtype, seed=seed) for seed in (1, 2))
    assert_same_bits(both_ways(monkeypatch, lambda: sample_kl(mu, logvar), (mu, logvar)))
    logits, target = likelihood(device, "bernoulli", dtype)
    assert_same_bits(both_ways(monkeypatch, lambda: reconstruction_loss(logits, target.float()), (logits,)))


@pytest.mark.parametrize("dtypes", [*itertools.permutations(DTYPES[:3], 2)], ids=str)
def test_mixed_dtypes(dtypes, device, monkeypatch):
    mu, logvar = (tensor(device, 4, 5, dtype=dtype, seed=seed) for seed, dtype in enumerate(dtypes))
    target = tensor(device, 4, 5).detach()
    for call in (
        lambda: sample_kl(mu, logvar),
        lambda: gaussian_kl(mu, logvar),
        lambda: reconstruction_loss((mu, logvar), target, "gaussian"),
    ):
        assert_same_bits(both_ways(monkeypatch, call, (mu, logvar)))


@pytest.mark.parametrize("reduction", SCALARS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_losses(name, reduction, device, monkeypatch):
    output, target = likelihood(device, name)
    call = functools.partial(reconstruction_loss, output, target, name, reduction=reduction)
    assert_same_bits(both_ways(monkeypatch, call, _all(output)))


@pytest.mark.parametrize("shape", [(5,), ()], ids=["per_sample", "averaged"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_whole_loss(name, shape, device, monkeypatch):
    output, target = likelihood(device, name)
    kl = tensor(device, *shape)
    call = functools.partial(elbo_loss, output, target, kl, likelihood=name, beta=2.0)
    assert_same_bits(both_ways(monkeypatch, call, (kl, *_all(output))))


@pytest.mark.parametrize("dtype", checks.INTEGERS, ids=str)
@pytest.mark.parametrize("name", ["bernoulli", "mse", "poisson"])  # bytes are pixels, and counts
def test_targets_of_integers(name, dtype, device, monkeypatch):
    output, target = likelihood(device, name)
    target = target.to(dtype)
    assert_same_bits(both_ways(monkeypatch, lambda: reconstruction_loss(output, target, name), (output,)))
    kl = tensor(device, 5)
    assert_same_bits(both_ways(monkeypatch, lambda: elbo_loss(output, target, kl, likelihood=name), (kl, output)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_learned_scale(dtype, device, monkeypatch):
    mean, target = tensor(device, 5, 3, dtype=dtype), values(5, 3, device=device, seed=2)
    scale = torch.tensor(0.3, device=device, requires_grad=True)
    for name in ("gaussian", "laplace", "student_t"):
        call = functools.partial(reconstruction_loss, (mean, scale), target, name)
        assert_same_bits(both_ways(monkeypatch, call, (mean, scale)))


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
    )

    def both_passes():
        for call in calls:
            outputs = _all(call())
            upstream, given = [torch.ones_like(o) for o in outputs], (mu, logvar, moments)
            for retained in (True, False):
                torch.autograd.grad(outputs, given, upstream, retain_graph=retained, allow_unused=True)

    for _ in range(CALLS):
        both_passes()
    monkeypatch.setattr(launching, "_kind", lambda *_: pytest.fail("looked up"))
    both_passes()


class Wrapped(torch.Tensor):
    """A subclass, whose memory could hold anything."""


def left_behind(value):
    """What torch.func.grad leaves behind of an argument."""
    kept = []
    torch.func.grad(lambda t: (kept.append(t), t.sum())[1])(value)
    return kept[0]


ODD = {
    "negated": torch._neg_view,
    "a subclass": lambda t: t.as_subclass(Wrapped),
    "left behind": left_behind,
}


@pytest.mark.parametrize("odd", ODD)
def test_tensors_that_are_not_plain_take_the_long_way(odd, device):
    logits, target = likelihood(device, "bernoulli")
    kl = tensor(device, 5)
    make = ODD[odd]
    for made in (
        reconstruction_loss(make(logits), target),
        elbo_loss(logits, target, make(kl)).total,
        gaussian_kl(make(logits), logits),
        gaussian_kl(logits, make(logits)),
        sample_kl_packed(make(logits[:, :6]))[0],
        reconstruction_loss(make(logits), torch.arange(5, device=device), "categorical"),
    ):
        assert "Ordinary" in node(made), node(made)


@pytest.mark.parametrize("odd", ["negated", "a subclass"])  # what torch.func.grad leaves behind requires a gradient
def test_targets_that_are_not_plain_take_the_long_way(odd, device):
    logits, target = likelihood(device, "bernoulli")
    made = ODD[odd](target)
    loss = reconstruction_loss(logits, made)
    assert "Ordinary" in node(loss)
    assert torch.equal(loss, reconstruction_loss(logits, made.resolve_neg().as_subclass(torch.Tensor)))
    indices = torch.arange(5, device=device)
    made = ODD[odd](-indices if odd == "negated" else indices)
    loss = reconstruction_loss(logits, made, "categorical")
    assert "Ordinary" in node(loss)
    assert torch.equal(loss, reconstruction_loss(logits, indices, "categorical"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_option(case, dtype, device, monkeypatch):
    leaves = case.leaves(device, dtype)
    assert_same_bits(both_ways(monkeypatch, lambda: case.call(*leaves), leaves))


DRAWN = {
    "binarize": lambda a, b, x: reconstruction_loss(a, x, binarize=True),
    "binarize by a generator": lambda a, b, x: reconstruction_loss(a, x, binarize=True, generator=generator(x)),
    "samples": lambda a, b, x: sample_kl(a, b, num_samples=2, kl="monte_carlo", logvar_clamp=(-0.5, 0.5)),
    "a generator": lambda a, b, x: reparameterize(a, b, scale=Softplus(0.5), generator=generator(x)),
}


def generator(like):
    return torch.Generator(like.device).manual_seed(3)


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn(name, device, monkeypatch):
    a, b, target = tensor(device, 4, 5), tensor(device, 4, 5, seed=2), values(4, 5, device=device, dtype=torch.float32)
    inputs = (a,) if "binarize" in name else (a, b)
    assert_same_bits(both_ways(monkeypatch, lambda: DRAWN[name](a, b, target), inputs))
    torch.manual_seed(1)
    first, second = (_all(DRAWN[name](a, b, target))[0] for _ in range(2))
    assert torch.equal(first, second) == ("generator" in name)


def test_nothing_is_drawn_beside_noise_that_is_given(device):
    mu, eps = tensor(device, 4, 5), values(4, 5, device=device, dtype=torch.float32)
    torch.manual_seed(1)
    wanted = torch.rand(1, device=device)
    torch.manual_seed(1)
    for _ in range(CALLS):
        reparameterize(mu, mu, eps=eps)
    assert torch.equal(torch.rand(1, device=device), wanted)


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
        *(functools.partial(gaussian_kl, mu, v, prior=(p, p)) for p in (mu.detach() / 2, mu.detach()[:1], mu[:1])),
        *(functools.partial(gaussian_kl, mu, v, prior=[p, p]) for p in (v.detach(), v.detach()[:1], v[:1])),
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
        wanted = [[t.detach() for t in _all(call())] for call in calls]
    for call, expected in zip(CALLS * calls, CALLS * wanted, strict=True):
        assert all(torch.equal(a.detach(), b) for a, b in zip(_all(call()), expected, strict=True))
    assert len({tuple(first.flatten().tolist()) for first, *_ in wanted}) > 30  # they do differ


def drawn_alike(mu, logvar, **options):
    """`sample_kl`, of a seed that nobody gives."""
    torch.manual_seed(5)
    return sample_kl(mu, logvar, **options)


def by_columns(tensor):
    """The same numbers, which lie column by column."""
    return tensor.t().contiguous().t()


@contextlib.contextmanager
def kinds_forgotten():
    """Within the block every call takes the long way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "find", find_none)
        yield


def test_who_asks_for_what_is_not_played(device):
    logits, target = likelihood(device, "bernoulli")
    shared = torch.zeros(7, device=device, requires_grad=True)
    calls = (
        lambda: gaussian_kl(logits, logits),
        lambda: reconstruction_loss(logits, target, weight=torch.ones(5, device=device)),
        lambda: reconstruction_loss((logits, shared), target, "gaussian"),
    )
    for call in calls * CALLS:
        played = node(call())
    assert "_Played" in played
    for call in calls:
        with use_backend("eager"):
            assert "_Played" not in node(call())
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(kinds.Replay, "play", lambda *_: pytest.fail("a gradient is made that nobody asks for"))
            assert not call().requires_grad
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            call()
        assert any("_forward" in event.key for event in profiled.key_averages())
    assert "_Played" not in node(reconstruction_loss(logits, target, validate=True))


@pytest.mark.parametrize("odd", ["negated", "a subclass"])
def test_seeds_that_are_not_plain_take_the_long_way(odd, device):
    logits, target = likelihood(device, "bernoulli")
    seed = torch.tensor([-3], device=device)
    made = ODD[odd](-seed if odd == "negated" else seed)
    for call in (
        lambda seed: reparameterize(logits, logits, seed=seed),
        lambda seed: reconstruction_loss(logits, target, binarize=True, seed=seed),
    ):
        for _ in range(CALLS):
            wanted = call(seed)
        assert "_Played" in node(wanted)
        assert torch.equal(call(made), wanted)
        assert "Ordinary" in node(call(made))


def test_an_empty_batch_is_never_played(device):
    empty = torch.zeros(0, 3, device=device, requires_grad=True)
    for _ in range(CALLS):
        made = (
            gaussian_kl(empty, empty, reduction="sum"),
            sample_kl_packed(torch.zeros(0, 4, device=device, requires_grad=True))[1].sum(),
            reconstruction_loss(empty, empty.detach(), reduction="sum"),
            reconstruction_loss(empty, torch.zeros(0, device=device).long(), "categorical", reduction="sum"),
            elbo_loss(empty, empty.detach(), empty.sum(1)).total.nan_to_num(),
        )
        assert not any(t.item() for t in made)


def test_kinds_are_forgotten_before_they_fill_the_memory(device, monkeypatch):
    monkeypatch.setattr(kinds, "MOST", 2)
    monkeypatch.setattr(kinds, "_kinds", {})
    for size in (1, 2, 3, 4, 4, 4):
        output = torch.full((1, size), 2.0, device=device, requires_grad=True)
        assert reconstruction_loss(output, torch.zeros_like(output), "mse").item() == 4 * size
        assert len(kinds._kinds) <= 2


def test_layouts_of_gradients_are_forgotten_before_they_fill_the_memory(device, monkeypatch):
    monkeypatch.setattr(kinds, "MOST", 2)
    monkeypatch.setattr(kinds, "_kinds", {})
    mu, logvar = tensor(device, 4, 5), tensor(device, 4, 5, seed=2)
    for width in (5, 6, 7, 8, 8, 8):
        z = reparameterize(mu, logvar, seed=1)
        torch.autograd.grad(z, logvar, torch.ones(4, width, device=device)[:, :5])
    (kind,) = kinds._kinds.values()
    assert 0 < len(kind._backward) <= 2


def test_a_kind_keeps_no_tensor(device):
    def call():
        output, weight = tensor(device, 3, 11), torch.ones(3, device=device)
        prior = torch.zeros(3, 11, device=device), torch.zeros(11, device=device)
        made = (
            reconstruction_loss(output, torch.ones_like(output), weight=weight),
            elbo_loss(output, torch.ones_like(output), output.sum(1), beta=torch.ones((), device=device)).total,
            *sample_kl(output, output, prior=prior, eps=torch.ones_like(output)),
        )
        sum(t.sum() for t in made).backward()
        return [weakref.ref(t) for t in (output, weight, *prior, *made)]

    gc.disable()
    try:
        assert not any(kept() is not None for _ in range(CALLS) for kept in call())
    finally:
        gc.enable()


def test_a_gradient_that_is_not_plain_is_not_played(device):
    """Each is an op of its own to what listens, whatever forward was."""
    logits, target = likelihood(device, "bernoulli")
    for call in (
        lambda: reconstruction_loss(logits, target),
        lambda: reconstruction_loss(logits, target, reduction="sample"),
        lambda: elbo_loss(logits, target, logits.sum(1)).total,
        lambda: sample_kl(logits, logits, seed=1)[0],
    ):
        for _ in range(CALLS):
            output = call()
        upstream, negated = torch.full_like(output, 2.0), torch._neg_view(torch.full_like(output, -2.0))
        (wanted,) = torch.autograd.grad(output, logits, upstream)
        output, listened_to = call(), call()
        for retained in (True, False):  # scaled where forward has made it, and made again
            (made,) = torch.autograd.grad(output, logits, negated, retain_graph=retained)
            assert torch.equal(made, wanted)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
                torch.autograd.grad(listened_to, logits, upstream, retain_graph=retained)
            assert any("vae_fast::" in event.key for event in profiled.key_averages())


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b, target: gaussian_kl(a, b[:2]),
        lambda a, b, target: gaussian_kl(a, b.double()),
        lambda a, b, target: gaussian_kl(a, b, reduction="total"),
        lambda a, b, target: gaussian_kl(a, None),
        lambda a, b, target: sample_kl(a.to(torch.int64), b),
        lambda a, b, target: sample_kl_packed(a[:4], dim=0),  # an even number of samples
        lambda a, b, target: sample_kl_packed(a, dim=1),  # 7 columns
        lambda a, b, target: reconstruction_loss((a, b), target),
        lambda a, b, target: reconstruction_loss(a, target[:2]),
        lambda a, b, target: reconstruction_loss(a, b),  # a target that requires a gradient
        lambda a, b, target: reconstruction_loss(a, target, reduction=["sum"]),
        lambda a, b, target: reconstruction_loss(a, target, "categorical"),
        lambda a, b, target: elbo_loss(a, target, a),
        lambda a, b, target: elbo_loss(a, target, torch.zeros(4, device=a.device)),
        lambda a, b, target: elbo_loss(a, target, torch.zeros(5, dtype=torch.int64, device=a.device)),
        lambda a, b, target: elbo_loss(a, target, target[:, 0], beta=-1.0),
        lambda a, b, target: elbo_loss(a, target, 1.0),
        lambda a, b, target: elbo_loss(a, target, a.sum(1), beta="1"),
        lambda a, b, target: elbo_loss(a, target, a.sum(1), beta=math.nan),
        lambda a, b, target: elbo_loss(a, target, a.sum(1), beta=b[0, 0]),  # which requires a gradient
        lambda a, b, target: sample_kl(a, a, seed=2**64),
        lambda a, b, target: sample_kl(a, a, seed=1, eps=target),
        lambda a, b, target: sample_kl(a, a, seed=1, generator=generator(a)),
        lambda a, b, target: sample_kl(a, a, eps=b),
        lambda a, b, target: sample_kl(a, a, generator=3),
        lambda a, b, target: sample_kl(a, a, num_samples=True),
        lambda a, b, target: sample_kl(a, a, num_samples=1.0),
        lambda a, b, target: sample_kl(a, a, prior=target[:2]),  # of which each row could be one
        lambda a, b, target: sample_kl(a, a, prior=[target]),
        lambda a, b, target: sample_kl(a, a, logvar_clamp=[1, 0]),
        lambda a, b, target: sample_kl(a, a, logvar_clamp=(False, 1)),
        lambda a, b, target: sample_kl(a, a, scale=target),
        lambda a, b, target: sample_kl_packed(a[:4, :6], dim=None),
        lambda a, b, target: sample_kl_packed(a[:4, :6], dim=True),
        lambda a, b, target: sample_kl_packed(a[:4, :6], dim=1.0),
        lambda a, b, target: reconstruction_loss(a, target, target_scale=True),
        lambda a, b, target: reconstruction_loss(a, target, binarize=1, seed=1),
        lambda a, b, target: reconstruction_loss(a, target, seed=1),
        lambda a, b, target: reconstruction_loss(a, target, binarize=True, seed=1.5),
        lambda a, b, target: reconstruction_loss(a, target, binarize=True, seed=1, generator=torch.default_generator),
        lambda a, b, target: reconstruction_loss(a, target, weight=b),  # which requires a gradient
        lambda a, b, target: reconstruction_loss(a, target, weight=target[:2]),
        lambda a, b, target: reconstruction_loss(a, target, validate=1),
    ],
)
def test_bad_arguments_take_the_long_way_to_their_error(call, device):
    logits, target = likelihood(device, "bernoulli")
    given = logits, tensor(device, 5, 7, seed=4), target
    with kinds_forgotten(), pytest.raises((TypeError, ValueError)) as first:
        call(*given)
    for _ in range(CALLS):
        warm(logits, target)
        with pytest.raises(first.type, match=re.escape(str(first.value))):
            call(*given)


def warm(a, target):
    """Plain calls of every function, so that their kinds are known."""
    gaussian_kl(a, a)
    sample_kl(a, a)
    sample_kl(a, a, eps=target)
    sample_kl(a, a, seed=1)
    sample_kl(a, a, generator=generator(a))
    sample_kl(a, a, num_samples=1)
    sample_kl(a, a, logvar_clamp=(0, 1))
    sample_kl_packed(a[:4, :6], dim=1)
    reconstruction_loss(a, target)
    reconstruction_loss(a, target, target_scale=1)
    reconstruction_loss(a, target, binarize=True, seed=1)
    elbo_loss(a, target, a.sum(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b, target: gaussian_kl(a, b.to("meta")),
        lambda a, b, target: sample_kl(a, b.to("meta")),
        lambda a, b, target: reconstruction_loss(a, target.to("meta")),
        lambda a, b, target: reconstruction_loss((a, b.to("meta")), target, "gaussian"),
        lambda a, b, target: reconstruction_loss(a, target[:, 0].long().to("meta"), "categorical"),
        lambda a, b, target: elbo_loss(a, target, target[:, 0].to("meta")),
    ],
)
def test_tensors_of_two_devices_take_the_long_way_to_their_error(call, device):
    logits, target = likelihood(device, "bernoulli")
    with pytest.raises(ValueError, match="they must be on one device"):
        call(logits, tensor(device, 5, 7, seed=4), target)


def test_a_second_derivative_raises(device):
    logits, target = likelihood(device, "bernoulli")
    for loss in (gaussian_kl(logits, logits), reconstruction_loss(logits, target)):
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            gradient.sum().backward()


def test_batched_upstream_gradients(device):
    mu, logvar = (tensor(device, 4, 5, seed=seed) for seed in (1, 2))
    z, _ = sample_kl(mu, logvar)
    upstream = torch.stack([torch.ones_like(z), torch.full_like(z, 2.0)])
    (batched,) = torch.autograd.grad(z, logvar, upstream, is_grads_batched=True, retain_graph=True)
    for each, g in zip(batched, upstream, strict=True):
        assert torch.equal(each, torch.autograd.grad(z, logvar, g, retain_graph=True)[0])
