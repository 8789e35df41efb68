"""Plain calls of the kernels take a shorter way: the same bits as the long one, which takes whatever is not plain."""

import functools
import itertools

import pytest
import torch

from tests.ops.cases import values
from tests.support.environment import BACKENDS
from vae_fast import checks, elbo_loss, gaussian_kl, reconstruction_loss, sample_kl, sample_kl_packed, use_backend
from vae_fast.checks import LATENT_REDUCTIONS
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops import launched

KERNELS = [backend for backend in BACKENDS if backend.name == "triton"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALARS = ("sum", "mean", "batchmean")
SHORT = ("sample_kl", "sample_kl_packed", "gaussian_kl", "reconstruct", "elbo")


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


def both_ways(monkeypatch, call, inputs):
    """Outputs and gradients of the short and of the long way, of the same noise, for upstream gradients of 1.5."""
    found = []
    for way in ("Short", "Ordinary"):
        with monkeypatch.context() as patch:
            if way == "Ordinary":
                for name in SHORT:
                    patch.setattr(launched, name, lambda *arguments: None)
            torch.manual_seed(7)
            outputs = _all(call())
        assert node(outputs[0]) == f"{way}Backward"
        upstream = [torch.full_like(o, 1.5) for o in outputs]
        first = torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)
        again = torch.autograd.grad(outputs, inputs, upstream)  # which makes them again
        found.append((*(o.detach() for o in outputs), *first, *again))
    return found


def assert_same_bits(found):
    for short, long in zip(*found, strict=True):
        assert short.stride() == long.stride()
        assert short.dtype == long.dtype
        assert torch.equal(short, long)


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


@pytest.mark.parametrize("dtypes", itertools.permutations(DTYPES[:3], 2), ids=str)
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
@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "categorical"])
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


def test_options_take_the_long_way(device):
    logits, target = likelihood(device, "bernoulli")
    for options in (
        {"weight": torch.ones(5, device=device)}, {"target_scale": 0.5}, {"binarize": True}, {"validate": True},
        {"reduction": "sample"}, {"reduction": "none"},
    ):  # fmt: skip
        assert "Ordinary" in node(reconstruction_loss(logits, target, **options))
    shared = torch.zeros(7, device=device, requires_grad=True)
    assert "Ordinary" in node(reconstruction_loss((logits, shared), target, "gaussian"))
    assert "Ordinary" in node(reconstruction_loss((logits[:1, :1], shared[0]), target[:1, :1], "gaussian"))
    for options in ({"seed": 1}, {"eps": torch.zeros_like(logits)}, {"num_samples": 2}, {"kl": "monte_carlo"}):
        assert "Ordinary" in node(sample_kl(logits, logits, **options)[0])
    with use_backend("eager"):
        assert "Short" not in node(gaussian_kl(logits, logits))
    with torch.no_grad():
        assert not gaussian_kl(logits, logits).requires_grad
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        gaussian_kl(logits, logits)
    assert any("vae_fast::gaussian_forward" in event.key for event in profiled.key_averages())


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
    ],
)
def test_bad_arguments_take_the_long_way_to_their_error(call, device):
    logits, target = likelihood(device, "bernoulli")
    with pytest.raises((TypeError, ValueError)):
        call(logits, tensor(device, 5, 7, seed=4), target)


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
