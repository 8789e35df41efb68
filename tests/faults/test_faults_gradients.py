"""Faults that users of other projects reported: wrong or missing gradients."""

import pytest
import torch

from tests.faults import plain
from tests.ops.cases import values
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, reparameterize, sample_kl, sample_kl_packed

# What follows the loss in a user's code decides the upstream gradient's strides.
UPSTREAM = {
    "sum: stride 0": lambda t: t.sum(),
    "mean over a dimension: partly stride 0": lambda t: (t.mean(-1) ** 2).sum(),
    "cat: a narrowed view": lambda t: (torch.cat([t, 2 * t], dim=-1) ** 2)[..., 1:].sum(),
    "transposed": lambda t: (t.movedim(-1, 0).contiguous() ** 2).sum(),
    "every other": lambda t: (t[..., ::2] ** 2).sum(),
    "flipped": lambda t: (t.flip(-1) * torch.arange(t.numel(), device=t.device).view(t.shape)).sum(),
    "expanded twice": lambda t: (t.expand(3, *t.shape) ** 3).sum(),
    "split": lambda t: sum((i + 1) * part.sum() for i, part in enumerate(t.split(2, dim=-1))),
}


def leaves(backend, *shapes):
    return [
        ((values(*s, device=backend.device, seed=i) - 0.5) * 2).requires_grad_() for i, s in enumerate(shapes, start=1)
    ]


def assert_same_gradients(ours, theirs, tensors):
    torch.testing.assert_close(torch.autograd.grad(ours, tensors), torch.autograd.grad(theirs, tensors))


@pytest.mark.parametrize("follow", UPSTREAM.values(), ids=UPSTREAM)
@pytest.mark.parametrize("reduction", ["none", "sample", "latent"])
def test_upstream_gradients_of_a_kl_have_any_strides(reduction, follow, backend):
    mu, logvar = leaves(backend, (4, 5), (4, 5))
    theirs = follow(plain.reduce(plain.kl(mu, logvar), reduction))
    assert_same_gradients(follow(gaussian_kl(mu, logvar, reduction=reduction)), theirs, (mu, logvar))


@pytest.mark.parametrize("follow", UPSTREAM.values(), ids=UPSTREAM)
def test_upstream_gradients_of_a_sample_have_any_strides(follow, backend):
    mu, logvar = leaves(backend, (4, 5), (4, 5))
    eps = values(4, 5, device=backend.device, seed=3)
    theirs = follow(plain.sample(mu, logvar, eps)) + plain.kl(mu, logvar).sum()
    z, kl = sample_kl(mu, logvar, eps=eps)
    assert_same_gradients(follow(z) + kl.sum(), theirs, (mu, logvar))


@pytest.mark.parametrize("follow", UPSTREAM.values(), ids=UPSTREAM)
@pytest.mark.parametrize("reduction", ["none", "sample"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_upstream_gradients_of_a_reconstruction_have_any_strides(likelihood, reduction, follow, backend):
    tensors = leaves(backend, (4, 5), (4, 5))[: 2 if likelihood == "gaussian" else 1]
    output = tuple(tensors) if likelihood == "gaussian" else tensors[0]
    target = values(4, 5, device=backend.device, seed=7)
    theirs = follow(plain.reduce(plain.nll(output, target, likelihood), reduction))
    assert_same_gradients(follow(reconstruction_loss(output, target, likelihood, reduction=reduction)), theirs, tensors)


def test_upstream_gradients_of_images_in_another_memory_format(backend):
    mu, logvar = (t.detach().to(memory_format=torch.channels_last) for t in leaves(backend, (2, 3, 4, 5), (2, 3, 4, 5)))
    mu.requires_grad_()
    eps = values(2, 3, 4, 5, device=backend.device)
    weight = values(2, 3, 4, 5, device=backend.device, seed=2)  # contiguous: the upstream gradient's format
    z, kl = sample_kl(mu, logvar, eps=eps, reduction="none")
    theirs = (plain.sample(mu, logvar, eps) * weight).sum() + (plain.kl(mu, logvar) * weight).sum()
    assert_same_gradients((z * weight).sum() + (kl * weight).sum(), theirs, (mu,))


SAVERS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda h: torch.softmax(h, dim=-1),
    "exp": torch.exp,
    "relu": torch.relu,
}


@pytest.mark.parametrize("saver", SAVERS.values(), ids=SAVERS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_output_that_the_op_before_saved_survives(saver, scale, backend):
    """Its backward needs its output: a gradient written over it would be used in its place."""
    (hidden,) = leaves(backend, (4, 6))
    target = values(4, 6, device=backend.device)
    ours = reconstruction_loss(saver(hidden), target) + elbo_loss(saver(hidden), target, hidden.mean() * 0).total
    theirs = 2 * plain.reduce(plain.nll(saver(hidden), target), "batchmean")
    assert_same_gradients(scale * ours, scale * theirs, (hidden,))
    z, kl = sample_kl_packed(saver(hidden), eps=target[:, :3])
    theirs = plain.kl(*saver(hidden).chunk(2, 1)).sum() + plain.sample(*saver(hidden).chunk(2, 1), target[:, :3]).sum()
    assert_same_gradients(scale * (kl.sum() + z.sum()), scale * theirs, (hidden,))


@pytest.mark.parametrize("scales", [(1.0, 1.0), (2.0, 1.0), (1.0, -3.0), (0.5, 0.25)])
def test_two_backward_passes_with_different_upstreams(scales, backend):
    (hidden,) = leaves(backend, (4, 6))
    target = values(4, 6, device=backend.device)
    ours = reconstruction_loss(torch.sigmoid(hidden), target)
    theirs = plain.reduce(plain.nll(torch.sigmoid(hidden), target), "batchmean")
    for i, scale in enumerate(scales):
        (actual,) = torch.autograd.grad(scale * ours, hidden, retain_graph=i == 0)
        torch.testing.assert_close(actual, torch.autograd.grad(scale * theirs, hidden, retain_graph=True)[0])


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_the_gradient_at_the_last_layer_then_the_whole_backward(factor, backend):
    """As adaptive loss weights do (VQGAN): autograd.grad(loss, last_layer, retain_graph=True), then backward."""
    (x,) = leaves(backend, (4, 6))
    torch.manual_seed(0)
    first, last = (torch.nn.Linear(6, 6, device=backend.device, dtype=torch.float64) for _ in range(2))
    target = values(4, 6, device=backend.device)
    output = last(torch.tanh(first(x)))
    results = []
    for loss in (reconstruction_loss(output, target), plain.reduce(plain.nll(output, target), "batchmean")):
        (at_last,) = torch.autograd.grad(loss, last.weight, retain_graph=True)
        for p in (*first.parameters(), *last.parameters()):
            p.grad = None
        (factor * loss).backward(retain_graph=True)
        results.append([at_last, *(p.grad for p in (*first.parameters(), *last.parameters()))])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("why", ["constants", "no_grad", "inference_mode", "the model is frozen"])
def test_a_loss_is_right_where_no_input_needs_a_gradient(why, backend):
    mu, logvar, logits = (t.detach() for t in leaves(backend, (4, 6), (4, 6), (4, 6)))
    target = values(4, 6, device=backend.device)
    if why == "the model is frozen":  # only the other term is trained
        mu = mu.requires_grad_()
    modes = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with modes.get(why, torch.enable_grad)():
        z, kl = sample_kl(mu, logvar, eps=target)
        losses = elbo_loss(logits, target, kl.detach(), beta=2.0)
        alone = reconstruction_loss(logits, target), gaussian_kl(mu, logvar), reparameterize(mu, logvar, eps=target)
    nll, divergence = plain.reduce(plain.nll(logits, target), "batchmean"), plain.reduce(plain.kl(mu, logvar), "sample")
    wanted_z = plain.sample(mu, logvar, target)
    torch.testing.assert_close((z, kl), (wanted_z, divergence))
    torch.testing.assert_close(tuple(losses), (nll + 2 * divergence.mean(), nll, divergence.mean()), check_stride=False)
    torch.testing.assert_close(alone, (nll, divergence.mean(), wanted_z))
    assert not any(loss.requires_grad for loss in losses)


def penalty(backend, function):
    """A gradient penalty through one of our losses, with a constant upstream gradient."""
    (x,) = leaves(backend, (4, 6))
    (gradient,) = torch.autograd.grad(function(x, values(4, 6, device=backend.device)), x, create_graph=True)
    return gradient.square().sum()


PENALISED = {
    "reconstruction": lambda x, target: reconstruction_loss(x, target),
    "elbo": lambda x, target: elbo_loss(x, target, x.sum(1)).total,
    "kl": lambda x, target: gaussian_kl(x, target),
    "sample": lambda x, target: reparameterize(target, x, eps=target).sum(),
}


@pytest.mark.parametrize("function", PENALISED.values(), ids=PENALISED)
def test_a_second_derivative_is_never_silently_wrong(function, backend):
    loss = penalty(backend, function)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        loss.backward()


@pytest.mark.parametrize("function", PENALISED.values(), ids=PENALISED)
def test_grad_of_grad_raises(function, backend):
    x, target = values(4, 6, device=backend.device, seed=2), values(4, 6, device=backend.device)
    first = torch.func.grad(lambda t: function(t, target))
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.func.grad(lambda t: first(t).square().sum())(x)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.func.jacrev(first)(x)


@pytest.mark.parametrize("k", [2, 4])
def test_gradient_accumulation(k, backend):
    """Mean of k losses, each divided by k, against one pass over the whole batch."""
    (logits,) = leaves(backend, (8, 6))
    target = values(8, 6, device=backend.device)
    for rows, x in zip(logits.chunk(k), target.chunk(k)):
        (elbo_loss(rows, x, rows.square().sum(1)).total / k).backward()
    theirs = plain.reduce(plain.nll(logits, target) + logits.square(), "batchmean")
    torch.testing.assert_close(logits.grad, torch.autograd.grad(theirs, logits)[0])


def test_a_scaled_loss_gives_finite_float16_gradients_that_do_not_underflow(backend):
    """A GradScaler multiplies by 65536; a gradient kept unscaled in float16 would already have lost its digits.

    Divided by this batch, all are below its smallest normal number.
    """
    batch = 2**15
    wide = (values(batch, 4, device=backend.device) - 0.5) * 8
    logits = wide.half().requires_grad_()
    target = values(batch, 4, device=backend.device, seed=2).half()
    losses = elbo_loss(logits, target, torch.zeros((), device=backend.device))
    (65536 * losses.total).backward()
    wanted = 65536 / batch * (torch.sigmoid(logits.double()) - target.double())
    assert logits.grad.dtype == torch.float16
    torch.testing.assert_close(logits.grad.double(), wanted, rtol=2e-3, atol=1e-5)


def test_a_grad_scaler_steps(backend):
    torch.manual_seed(0)
    device = torch.device(backend.device).type
    model = torch.nn.Linear(6, 6, device=device)
    before = model.weight.detach().clone()
    scaler, optimizer = torch.amp.GradScaler(device), torch.optim.SGD(model.parameters(), lr=0.1)
    x = values(4, 6, device=backend.device, dtype=torch.float32)
    with torch.autocast(device, dtype=torch.float16):
        loss = reconstruction_loss(model(x), x)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    theirs = plain.reduce(plain.nll(torch.nn.functional.linear(x, before, model.bias.detach()), x), "batchmean")
    torch.testing.assert_close(loss, theirs, rtol=2e-3, atol=2e-3)
    assert torch.isfinite(model.weight).all()
    assert not torch.equal(model.weight, before)
