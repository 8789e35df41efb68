"""What training loops wrap around a loss: autocast, checkpointing, saved-tensor hooks, anomaly mode, loss scaling."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tests.ops.cases import MAIN, case_id, scalar, tupled, values
from vae_fast import elbo_loss, reconstruction_loss, reparameterize, sample_kl, sample_kl_packed

STANDARD = torch.distributions.Normal(0.0, 1.0)
HOOKS = {
    "save_on_cpu": lambda: torch.autograd.graph.save_on_cpu(),
    "cloned": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t),
    "through NumPy": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.detach().cpu().numpy(), t.device), lambda kept: torch.from_numpy(kept[0]).to(kept[1])
    ),
}


@pytest.fixture
def model(backend):
    """An encoder and a decoder, small, of fixed weights."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(8, 6), torch.nn.Linear(3, 8)])
    return layers.to(backend.device)


def pixels(backend):
    return values(4, 8, device=backend.device, dtype=torch.float32)


def loss_of(model, x, **noise):
    z, kl = sample_kl_packed(model[0](x), **noise)
    return elbo_loss(model[1](z), x, kl).total


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_saved_tensor_hooks(case, hooks, backend):
    leaves = case.leaves(backend.device)
    wanted = torch.autograd.grad(scalar(case.call(*leaves)), leaves)
    with HOOKS[hooks]():
        loss = scalar(case.call(*leaves))
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close((first, torch.autograd.grad(loss, leaves)), (wanted, wanted))


def test_a_hook_may_have_saved_another_layout(backend):
    """As save_on_cpu(pin_memory=True) does: the order of the noise, and what is played, depend on strides."""
    leaf = values(7, 5, device=backend.device, dtype=torch.float32).requires_grad_()
    target = values(5, 7, device=backend.device, dtype=torch.float32)
    weight = torch.arange(5.0, device=backend.device)
    prior = torch.full((7,), 0.5, device=backend.device)
    for call in (
        lambda a: sample_kl(a, a, prior=(prior, prior), seed=1),
        lambda a: sample_kl(a, a, seed=2, num_samples=2, kl="monte_carlo"),
        lambda a: sample_kl_packed(a[:, :6], seed=3),
        lambda a: sample_kl_packed(a[:, :6], eps=values(3, 5, device=backend.device, dtype=torch.float32).t()),
        lambda a: reconstruction_loss(a, target, weight=weight),
        lambda a: reconstruction_loss(a, target, weight=weight, reduction="sample"),
        lambda a: tuple(elbo_loss(a, target, a[:, 0], weight=weight, binarize=True, seed=2)),
        lambda a: reconstruction_loss(a, target[:, 0].long(), "categorical"),
        lambda a: reconstruction_loss(a, target[:, 0].long(), "categorical", weight=weight, reduction="none"),
    ):
        for _ in range(4):  # the last of them are played
            outputs = tupled(call(leaf.t()))
            wanted = gradient(outputs, leaf), gradient(outputs, leaf)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.contiguous().clone()):
            outputs = tupled(call(leaf.t()))
        found = gradient(outputs, leaf), gradient(outputs, leaf)
        torch.testing.assert_close(found, wanted)


def gradient(outputs, leaf):
    return torch.autograd.grad(outputs, leaf, [torch.full_like(o, 1.5) for o in outputs], retain_graph=True)[0]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_anomaly_mode(case, backend):
    leaves = case.leaves(backend.device)
    wanted = torch.autograd.grad(scalar(case.call(*leaves)), leaves)
    with torch.autograd.detect_anomaly(check_nan=True):
        actual = torch.autograd.grad(scalar(case.call(*leaves)), leaves)
    torch.testing.assert_close(actual, wanted)


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
def test_anomaly_mode_finds_a_nan_gradient(backend):
    logits = torch.full((1, 2), float("nan"), device=backend.device, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True), pytest.raises(RuntimeError, match="returned nan values"):
        reconstruction_loss(logits, torch.zeros_like(logits)).backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("noise", ["int seed", "seed tensor", "eps"])
def test_checkpointing_replays_given_noise(use_reentrant, noise, model, backend):
    x = pixels(backend).requires_grad_()  # the re-entrant mode needs an input with a gradient
    options = {
        "int seed": {"seed": 3},
        "seed tensor": {"seed": torch.tensor([3], device=x.device)},
        "eps": {"eps": values(4, 3, device=x.device, dtype=torch.float32, seed=7)},
    }[noise]

    def encode(x):
        return sample_kl_packed(model[0](x), **options)

    z, kl = checkpoint(encode, x, use_reentrant=use_reentrant, preserve_rng_state=False)
    loss = elbo_loss(model[1](z), x.detach(), kl).total
    wanted = gradients(model, loss_of(model, x.detach(), **options))
    loss.backward()  # the re-entrant mode has no autograd.grad
    torch.testing.assert_close([p.grad for p in model.parameters()], list(wanted))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_replays_drawn_noise(use_reentrant, model, backend):
    x, dummy = pixels(backend), torch.zeros((), device=backend.device, requires_grad=True)
    torch.manual_seed(5)
    checkpoint(lambda dummy: loss_of(model, x) + dummy, dummy, use_reentrant=use_reentrant).backward()
    actual = [p.grad for p in model.parameters()]
    torch.manual_seed(5)
    torch.testing.assert_close(actual, list(gradients(model, loss_of(model, x))))


@pytest.mark.parametrize("likelihood", ["bernoulli", "mse", "gaussian"])
def test_checkpointing_the_reconstruction(likelihood, backend):
    logits = values(4, 6, device=backend.device).requires_grad_()
    target = values(4, 6, device=backend.device, seed=2)

    def loss(logits):
        output = (logits, logits * 0.5) if likelihood == "gaussian" else logits
        return reconstruction_loss(output, target, likelihood)

    for use_reentrant in (True, False):
        logits.grad = None
        (2 * checkpoint(loss, logits, use_reentrant=use_reentrant)).backward()
        torch.testing.assert_close(logits.grad, 2 * torch.autograd.grad(loss(logits), logits)[0])


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.bfloat16, torch.float16)], ids=str)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_what_makes_no_gradient_in_forward(use_reentrant, dtypes, backend):
    x, kl = values(4, 6, device=backend.device, seed=2).float(), values(4, device=backend.device).float()
    leaves = [values(4, 6, device=backend.device, seed=i).to(d).requires_grad_() for i, d in enumerate(dtypes)]

    def loss(*output):
        return elbo_loss(output, x, kl, likelihood="gaussian").total

    checkpoint(loss, *leaves, use_reentrant=use_reentrant).backward()
    torch.testing.assert_close(tuple(leaf.grad for leaf in leaves), torch.autograd.grad(loss(*leaves), leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_half_precision_outputs_and_float32_targets(dtype, model, backend):
    x = pixels(backend)
    with torch.autocast(torch.device(backend.device).type, dtype=dtype):
        moments = model[0](x)
        z, kl = sample_kl_packed(moments, seed=1)
        logits = model[1](z)
        losses = elbo_loss(logits, x, kl)
    assert (moments.dtype, z.dtype, logits.dtype) == (dtype,) * 3
    assert {kl.dtype, *(loss.dtype for loss in losses)} == {torch.float32}
    plain = F.binary_cross_entropy_with_logits(logits.double(), x.double(), reduction="sum") / 4
    torch.testing.assert_close(losses.reconstruction.double(), plain, rtol=1e-6, atol=1e-6)
    losses.total.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in model.parameters())


def autocast_step(encoder, decoder, logvar, x):
    """A std that is made in float32, and a learned scale, which stays float32: two means of bfloat16 beside them."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        mu, raw = encoder(x).chunk(2, dim=1)
        std = F.softplus(raw.float()) + 1e-3
        z, kl = sample_kl(mu, std, scale="std", seed=1)
        mean = decoder(z)
        return (mu, std, mean), elbo_loss((mean, logvar), x, kl, likelihood="gaussian").total


@pytest.mark.parametrize("compiled", [False, True], ids=["eager mode", "compiled"])
def test_autocast_leaves_a_scale_in_float32_beside_a_mean(compiled, model, backend, fresh_dynamo):
    logvar, x = torch.zeros((), device=backend.device, requires_grad=True), pixels(backend)
    step = torch.compile(autocast_step, backend="aot_eager", fullgraph=True) if compiled else autocast_step
    (mu, std, mean), loss = step(*model, logvar, x)
    assert [t.dtype for t in (mu, std, mean)] == [torch.bfloat16, torch.float32, torch.bfloat16]
    loss.backward()
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mu.double(), std.double()), STANDARD)
    error = (mean.double() - x.double()).detach().square()
    plain = (kl.sum() + 0.5 * (error + math.log(2 * math.pi)).sum()) / 4
    torch.testing.assert_close(loss.double(), plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logvar.grad.double(), 0.5 * (1 - error).sum() / 4, rtol=1e-6, atol=1e-6)
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in model.parameters())


def test_autocast_is_off_inside_the_ops(backend):
    """Arithmetic stays float32: the same losses within and without autocast, to the bit."""
    leaves = [values(4, 6, device=backend.device, dtype=torch.float32, seed=i) for i in range(3)]

    def losses():
        z, kl = sample_kl(leaves[0], leaves[1], seed=0, prior=(leaves[2], leaves[0]))
        return (z, kl, *elbo_loss((leaves[0], leaves[1]), leaves[2], kl, likelihood="gaussian"))

    with torch.autocast(torch.device(backend.device).type, dtype=torch.bfloat16):
        within = losses()
    torch.testing.assert_close(within, losses(), rtol=0, atol=0)


def test_a_learned_prior_is_trained(backend):
    """One row for all samples: autograd sums its gradient over the batch."""
    mu, logvar = (values(5, 3, device=backend.device, seed=i).requires_grad_() for i in range(2))
    prior = [values(3, device=backend.device, seed=i).requires_grad_() for i in (2, 3)]
    _, kl = sample_kl(mu, logvar, prior=tuple(prior), seed=0)
    kl.sum().backward()
    normal = torch.distributions.Normal
    plain = torch.distributions.kl_divergence(
        normal(mu, torch.exp(logvar / 2)), normal(prior[0], torch.exp(prior[1] / 2))
    ).sum()
    torch.testing.assert_close([t.grad for t in prior], list(torch.autograd.grad(plain, prior)))


def test_a_module_in_eval_mode_and_no_grad_still_gives_the_loss(model, backend):
    x = pixels(backend)
    wanted = loss_of(model, x, seed=1)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            actual = loss_of(model.eval(), x, seed=1)
        torch.testing.assert_close(actual, wanted.detach())
        assert not actual.requires_grad


def test_set_grad_enabled_inside_no_grad(backend):
    mu = values(2, 3, device=backend.device).requires_grad_()
    with torch.no_grad(), torch.enable_grad():
        z = reparameterize(mu, torch.zeros_like(mu), seed=0)
    torch.testing.assert_close(torch.autograd.grad(z.sum(), mu)[0], torch.ones_like(mu))
