"""What backward passes may ask: again, partly, in any order, with any upstream gradient; and what they leave alone."""

import contextlib
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tests.ops.cases import CASES, MAIN, case_id, scalar, tupled, values
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, sample_kl, use_backend


def problem(device, dtype=torch.float32):
    """Logits that need a gradient, targets, one kl a sample that needs one, and d BCE / d logits."""
    logits = (values(4, 6, device=device, dtype=dtype, seed=1) * 4 - 2).requires_grad_()
    target = values(4, 6, device=device, dtype=dtype, seed=2)
    kl = values(4, device=device, dtype=torch.float32, seed=3).requires_grad_()
    return logits, target, kl, (torch.sigmoid(logits) - target).detach()


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_retain_graph_three_times_with_different_upstreams(case, backend):
    leaves = case.leaves(backend.device)
    loss = scalar(case.call(*leaves))
    wanted = torch.autograd.grad(scalar(case.call(*leaves)), leaves)
    for scale in (3.0, 1.0, -0.5):
        upstream = torch.tensor(scale, dtype=loss.dtype, device=loss.device)
        actual = torch.autograd.grad(loss, leaves, upstream, retain_graph=True)
        torch.testing.assert_close(actual, tuple(scale * g for g in wanted))


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_a_second_backward_without_retain_graph_is_pytorchs_own_error(case, backend):
    leaves = case.leaves(backend.device)
    outputs = [t.sum() for t in tupled(case.call(*leaves))]
    loss = sum(outputs)
    loss.backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        loss.backward()


def test_retained_gradients_are_separate_buffers(backend):
    """The first backward hands out the buffer that forward made: a later one must not write to it."""
    logits, target, _, derivative = problem(backend.device)
    loss = reconstruction_loss(logits, target)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(10 * loss, logits)
    torch.testing.assert_close(first, derivative / 4)
    torch.testing.assert_close(second, derivative * 2.5)


@pytest.mark.parametrize("wanted", ["total", "reconstruction", "kl"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gradients_of_one_output_of_the_elbo(wanted, beta, backend):
    logits, target, kl, derivative = problem(backend.device)
    getattr(elbo_loss(logits, target, kl, beta=beta), wanted).backward()
    d_logits = None if wanted == "kl" else derivative / 4
    d_kl = {"total": beta / 4, "reconstruction": 0.0, "kl": 0.25}[wanted]
    assert (logits.grad is None) == (d_logits is None) or not logits.grad.any()
    if d_logits is not None:
        torch.testing.assert_close(logits.grad, d_logits)
    torch.testing.assert_close(torch.zeros_like(kl) if kl.grad is None else kl.grad, torch.full_like(kl, d_kl))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_the_reconstruction_alone_asks_nothing_of_the_kl(dtype, backend):
    """Not even zeros, which would be NaN where the KL has a slope of inf: neither by scaling nor by making it again."""
    logits, target, _, derivative = problem(backend.device, dtype)
    leaf = torch.zeros(4, device=backend.device, requires_grad=True)
    for _ in range(4):  # the last of them are played
        loss = elbo_loss(logits, target, leaf.sqrt()).reconstruction
        for retained in (True, False):
            gradients = torch.autograd.grad(loss, (logits, leaf), retain_graph=retained, allow_unused=True)
            torch.testing.assert_close(gradients, (derivative / 4, None))


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 2.0, 3.0), (1.0, 1.0, 1.0), (-1.0, 0.5, 4.0)])
def test_gradients_of_any_mixture_of_the_outputs_of_the_elbo(weights, backend):
    logits, target, kl, derivative = problem(backend.device)
    losses = elbo_loss(logits, target, kl, beta=0.5)
    sum(w * loss for w, loss in zip(weights, losses)).backward()
    torch.testing.assert_close(logits.grad, derivative * (weights[0] + weights[1]) / 4)
    torch.testing.assert_close(kl.grad, torch.full_like(kl, (weights[0] * 0.5 + weights[2]) / 4))


@pytest.mark.parametrize("used", ["z", "kl"])
def test_gradients_of_z_or_kl_alone(used, backend):
    mu, logvar = (values(4, 6, device=backend.device, seed=i).requires_grad_() for i in range(2))
    eps = values(4, 6, device=backend.device, seed=5)
    z, kl = sample_kl(mu, logvar, eps=eps)
    (z if used == "z" else kl).sum().backward()
    ones = torch.ones_like(mu)
    wanted = (ones, eps * torch.exp(logvar / 2) / 2) if used == "z" else (mu, torch.expm1(logvar) / 2)
    torch.testing.assert_close((mu.grad, logvar.grad), tuple(t.detach() for t in wanted))


@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith(("gaussian_kl", "reconstruction", "elbo"))],
                         ids=case_id)  # fmt: skip
def test_float64_has_the_digits_of_float64(case, backend):
    """A constant or an option that passed through float32 would err by 1e-8."""
    results = []
    for name in (backend.name, "eager"):
        leaves = case.leaves(backend.device)
        with use_backend(name):
            outputs = tupled(case.call(*leaves))
        results.append((outputs, torch.autograd.grad(scalar(outputs), leaves)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_forwards_buffer_becomes_the_leafs_gradient(backend):
    """AccumulateGrad takes it without a copy, so nothing else may hold it."""
    logits, target, kl, derivative = problem(backend.device, torch.float64)
    for loss in (reconstruction_loss(logits, target), elbo_loss(logits, target, kl).total):
        (buffer,) = loss.grad_fn.grads
        pointer = buffer.data_ptr()
        del buffer
        logits.grad = None
        loss.backward()
        assert logits.grad.data_ptr() == pointer
        torch.testing.assert_close(logits.grad, derivative / 4)


def test_the_buffer_is_freed_with_the_graph(backend):
    logits, target, _, _ = problem(backend.device, torch.float64)
    loss = reconstruction_loss(logits, target)
    buffer = weakref.ref(loss.grad_fn.grads[0])
    del loss
    gc.collect()
    assert buffer() is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_after_zero_grad(set_to_none, backend):
    logits, target, kl, derivative = problem(backend.device)
    optimizer = torch.optim.SGD([logits], lr=0.0)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=set_to_none)
        for _ in range(3):
            (elbo_loss(logits, target, kl).total / 3).backward()
        torch.testing.assert_close(logits.grad, derivative / 4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "mse", "gaussian"])
def test_inputs_are_never_written(likelihood, backend):
    logits, target, kl, _ = problem(backend.device)
    outputs = (logits, (logits.detach() * 0.5).requires_grad_())[: 2 if likelihood == "gaussian" else 1]
    before = [(t._version, t.detach().clone()) for t in (*outputs, target, kl)]
    losses = elbo_loss(outputs if len(outputs) > 1 else outputs[0], target, kl, likelihood=likelihood)
    (7 * losses.total).backward(retain_graph=True)
    losses.reconstruction.backward()
    for tensor, (version, values_before) in zip((*outputs, target, kl), before):
        assert tensor._version == version
        assert torch.equal(tensor.detach(), values_before)


@pytest.mark.parametrize("what", ["output", "target"])
def test_changing_an_input_in_place_before_a_recomputing_backward_is_pytorchs_error(what, backend):
    logits, target, _, _ = problem(backend.device)
    hidden = logits * 1
    loss = reconstruction_loss(hidden, target, reduction="sample")
    (hidden if what == "output" else target).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_tensor_hooks_see_and_change_the_gradient(backend):
    logits, target, kl, derivative = problem(backend.device)
    seen = []
    hidden = logits * 1
    hidden.register_hook(lambda g: seen.append(g.clone()))
    hidden.register_hook(lambda g: g * 2)
    losses = elbo_loss(hidden, target, kl)
    losses.total.register_hook(lambda g: g * 3)
    losses.total.backward()
    torch.testing.assert_close(seen[0], derivative * 0.75)
    torch.testing.assert_close(logits.grad, derivative * 1.5)
    torch.testing.assert_close(kl.grad, torch.full_like(kl, 0.75))


def test_a_hook_that_writes_to_the_gradient_does_not_reach_a_later_backward(backend):
    logits, target, _, derivative = problem(backend.device)
    loss = reconstruction_loss(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    gradient.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], derivative / 4)


def test_gradients_of_two_graphs_that_share_an_output(backend):
    logits, target, _, _ = problem(backend.device)
    hidden = torch.tanh(logits)
    first = reconstruction_loss(hidden, target)
    second = reconstruction_loss(hidden, target, "mse", reduction="mean")
    (first + 5 * second).backward()
    plain = F.binary_cross_entropy_with_logits(logits.tanh(), target, reduction="sum") / 4
    plain = plain + 5 * F.mse_loss(logits.tanh(), target)
    torch.testing.assert_close(logits.grad, torch.autograd.grad(plain, logits)[0])


def test_backward_from_another_thread(backend):
    import threading

    logits, target, kl, derivative = problem(backend.device)
    loss = elbo_loss(logits, target, kl).total * 2
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    torch.testing.assert_close(logits.grad, derivative / 2)


@pytest.mark.parametrize("listened", ["forward", "backward"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda a, x: reconstruction_loss(a, x, "poisson", reduction="sample"),
        lambda a, x: reconstruction_loss(a, x, "poisson"),
        lambda a, x: reconstruction_loss(a, x, "huber"),
        lambda a, x: elbo_loss(a, x, a[:, 0]).total,
        lambda a, x: gaussian_kl(a, a - 1, reduction="sample", logvar_clamp=(-9, 9)),
        lambda a, x: gaussian_kl(a, a - 1),
    ],
    ids=["counts_a_sample", "counts", "huber", "elbo", "clamped_kl", "kl"],
)
def test_a_checkpoint_saves_the_same_tensors_when_somebody_listens_to_one_of_its_forwards(loss, listened, backend):
    """Of one shape they would be taken for each other, and the gradient be wrong."""
    a, x = (values(4, 6, device=backend.device, dtype=torch.float32, seed=seed) for seed in (1, 2))
    wanted = torch.autograd.grad(loss(a.requires_grad_(), x).sum(), a)
    with torch.profiler.profile() if listened == "forward" else contextlib.nullcontext():
        made = checkpoint(loss, a, x, use_reentrant=False)
    with torch.profiler.profile() if listened == "backward" else contextlib.nullcontext():
        torch.testing.assert_close(torch.autograd.grad(made.sum(), a), wanted)


@pytest.mark.parametrize("shape", [(4, 6), (6,), ()], ids=["dense", "a_feature", "one"])
@pytest.mark.parametrize("reduction", ["sample", "none"])
def test_losses_of_counts_keep_the_derivatives_that_come_with_them(reduction, shape):
    """On the eager path, where they have most of their work in common; with a weight both are made for themselves.

    Small float32 losses have a function of their own, which keeps them for one backward pass.
    """
    mean = (values(4, 6, dtype=torch.float64, seed=1) + 0.1).requires_grad_()
    theta = (values(*shape, dtype=torch.float64, seed=2) + 0.1).requires_grad_()
    target = (5 * values(4, 6, dtype=torch.float64, seed=3)).round()
    results = []
    with use_backend("eager"):
        for weight, kept in ((None, 2), (torch.ones(4), 0)):
            options = {"reduction": reduction, "weight": weight}
            loss = reconstruction_loss((mean, theta), target, "negative_binomial", **options)
            assert len(loss.grad_fn.saved_tensors) == 5 + kept
            upstream = torch.arange(1.0, 1.0 + loss.numel()).view_as(loss)
            first = torch.autograd.grad(loss, (mean, theta), upstream, retain_graph=True)
            torch.testing.assert_close(torch.autograd.grad(loss, (mean, theta), upstream), first, rtol=0, atol=0)
            results.append((loss, first))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("reduction", ["none", "sample", "latent", "sum", "batchmean"])
def test_a_clamp_that_bfloat16_does_not_hold_bounds_its_gradient(reduction, backend):
    """Each logvar lies beyond its bound, and is what the bound is rounded to."""
    logvar = torch.tensor([[0.703125], [-0.69921875]], dtype=torch.bfloat16, device=backend.device, requires_grad=True)
    kl = gaussian_kl(torch.zeros_like(logvar), logvar, logvar_clamp=(-0.699, 0.702), reduction=reduction)
    assert not torch.autograd.grad(kl.sum(), logvar)[0].any()


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace", "negative_binomial"])
@pytest.mark.parametrize("first", [True, False])
def test_derivatives_are_kept_of_what_needs_a_gradient_alone(first, likelihood):
    """In float64, which has no short way."""
    params = tuple(
        values(4, 3, device="cpu", dtype=torch.float64, seed=k).requires_grad_(first == (k == 1)) for k in (1, 2)
    )
    target, upstream = torch.ones(4, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    with use_backend("eager"):
        loss = reconstruction_loss(params, target, likelihood, reduction="sample")
        each = reconstruction_loss(params, target, likelihood, reduction="sum", weight=upstream)
    assert sum(t is not None for t in loss.grad_fn.saved_tensors) == 4  # target, two parameters, and that
    (leaf,) = (p for p in params if p.requires_grad)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf, upstream), torch.autograd.grad(each, leaf))
