"""torch.func: grad, vmap, vmap of grad, Jacobians; and forward mode, which is not there and must say so."""

import functools
import threading

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch._vmap_internals import _vmap
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from tests.ops.cases import CASES, MAIN, SHAPE, case_id, scalar, tupled, values
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, reparameterize, sample_kl


def numbers(*shape, backend, seed=0):
    return values(*shape, device=backend.device, seed=seed)


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_func_grad_is_autograd_grad(case, backend):
    leaves = case.leaves(backend.device)
    actual = grad(lambda *t: scalar(case.call(*t)), argnums=tuple(range(len(leaves))))(*leaves)
    torch.testing.assert_close(actual, torch.autograd.grad(scalar(case.call(*leaves)), leaves))


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_vmap_of_grad_is_grad_of_each(case, backend):
    def gradients(*leaves):
        return grad(lambda *t: scalar(case.call(*t)), argnums=tuple(range(len(leaves))))(*leaves)

    examples = [case.leaves(backend.device, requires_grad=False, seed=i) for i in range(2)]
    actual = vmap(gradients)(*map(torch.stack, zip(*examples)))
    wanted = [torch.stack(t) for t in zip(*(gradients(*leaves) for leaves in examples))]
    torch.testing.assert_close(list(actual), wanted)


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_vmap_over_the_last_dimension_and_one_leaf_alone(case, backend):
    leaves = case.leaves(backend.device, requires_grad=False)
    examples = [leaves[0], leaves[0] * 0.5]
    in_dims = (-1, *(None for _ in leaves[1:]))
    actual = vmap(case.call, in_dims=in_dims)(torch.stack(examples, dim=-1), *leaves[1:])
    separate = [case.call(x, *leaves[1:]) for x in examples]
    wanted = torch.stack(separate) if torch.is_tensor(actual) else tuple(map(torch.stack, zip(*separate)))
    torch.testing.assert_close(actual, wanted)


def test_per_sample_gradients_of_a_model(backend):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 5).to(backend.device)
    x, target = torch.randn(4, 3, device=backend.device), torch.rand(4, 5, device=backend.device)

    def loss(params, sample, sample_target):
        output = functional_call(model, params, (sample[None],))
        return reconstruction_loss(output, sample_target[None])

    params = dict(model.named_parameters())
    actual = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, target)
    for i in range(len(x)):
        wanted = torch.autograd.grad(loss(params, x[i], target[i]), list(params.values()))
        torch.testing.assert_close([g[i] for g in actual.values()], list(wanted))


def test_vmap_over_seeds_is_a_sample_of_each_seed(backend):
    mu, logvar = numbers(2, 4, backend=backend), numbers(2, 4, backend=backend, seed=1)
    seeds = torch.tensor([[0], [7], [-1]], device=backend.device)
    actual = vmap(lambda seed: reparameterize(mu, logvar, seed=seed))(seeds)
    wanted = torch.stack([reparameterize(mu, logvar, seed=int(seed)) for seed in seeds])
    torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("num_samples", [None, 5])
@pytest.mark.parametrize("batched", ["mu", "logvar"])
@pytest.mark.parametrize("randomness", ["different", "same"])
@pytest.mark.parametrize("given", [False, True], ids=["default", "generator"])
def test_vmap_draws_noise_as_its_randomness_says(given, randomness, batched, num_samples, backend):
    tensors = [torch.zeros(3, 2, 64, device=backend.device), torch.zeros(2, 64, device=backend.device)]
    in_dims = (0, None)
    if batched == "logvar":
        tensors, in_dims = tensors[::-1], (None, 0)
    generator = torch.Generator(backend.device) if given else None
    options = {"num_samples": num_samples, "generator": generator}
    draw = vmap(lambda m, v: reparameterize(m, v, **options), in_dims, randomness=randomness)
    z = draw(*tensors)
    assert z.shape == (3, *([num_samples] if num_samples else ()), 2, 64)
    assert torch.equal(z[0], z[1]) == (randomness == "same")
    assert num_samples is None or not torch.equal(z[:, 0], z[:, 1])
    if given:
        generator.manual_seed(generator.initial_seed())
        assert torch.equal(draw(*tensors), z)


def test_jacobian_of_a_sample(backend):
    mu, logvar = numbers(1, 3, backend=backend), numbers(1, 3, backend=backend, seed=1)
    seed = torch.full((1,), 4, device=backend.device)
    by_mu, by_logvar = jacrev(lambda m, v: reparameterize(m, v, seed=seed).flatten(), argnums=(0, 1))(mu, logvar)
    z = reparameterize(mu, logvar, seed=seed)
    torch.testing.assert_close(by_mu.reshape(3, 3), torch.eye(3, dtype=mu.dtype, device=mu.device))
    torch.testing.assert_close(by_logvar.reshape(3, 3), torch.diag((z - mu).flatten() / 2))


def test_vjp_of_every_elbo_output(backend):
    logits, target, kl = (
        numbers(2, 3, backend=backend),
        numbers(2, 3, backend=backend, seed=1),
        numbers(2, backend=backend),
    )
    _, pullback = vjp(lambda a, k: tuple(elbo_loss(a, target, k, beta=0.5)), logits, kl)
    one, zero = torch.ones((), dtype=logits.dtype, device=logits.device), torch.zeros_like(logits[0, 0])
    d_total, d_kl = pullback((one, zero, zero))
    torch.testing.assert_close(d_total, (torch.sigmoid(logits) - target) / 2)
    torch.testing.assert_close(d_kl, torch.full_like(kl, 0.25))
    torch.testing.assert_close(pullback((zero, zero, one))[1], torch.full_like(kl, 0.5))


@pytest.mark.parametrize("backend_of_compile", ["eager", "aot_eager"])
def test_compile_over_grad_raises(backend_of_compile, backend):
    target = numbers(*SHAPE, backend=backend)
    compiled = torch.compile(grad(lambda a: reconstruction_loss(a, target)), backend=backend_of_compile, fullgraph=True)
    with pytest.raises(Exception, match=r"torch\.compile over torch\.func"):
        compiled(numbers(*SHAPE, backend=backend, seed=2))


def test_compile_over_grad_is_right_where_the_graph_may_break(backend):
    target, logits = numbers(*SHAPE, backend=backend), numbers(*SHAPE, backend=backend, seed=2)
    gradient = grad(lambda a: reconstruction_loss(a, target))
    try:
        actual = torch.compile(gradient, backend="aot_eager")(logits)
    except RuntimeError as error:
        assert "torch.func" in str(error)  # noqa: PT017 (either is right; silent zeros are not)
    else:
        torch.testing.assert_close(actual, gradient(logits))


def test_the_gradient_of_the_kl_alone_does_not_read_the_output(backend):
    """As without a transform: a zero upstream gradient would make NaN of it."""
    output, target = torch.full((2, 3), float("nan"), device=backend.device), numbers(2, 3, backend=backend).float()
    assert not grad(lambda a: elbo_loss(a, target, target[:, 0]).kl)(output).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_forward_mode_raises_or_is_right(case, dtype, backend):
    """A tangent that is silently lost would be a derivative of zero."""
    leaves = case.leaves(backend.device, requires_grad=False)
    directions = [torch.ones_like(t) for t in leaves]
    step = 1e-6
    ahead = scalar(case.call(*(t + step for t in leaves)))
    wanted = ((ahead - scalar(case.call(*(t - step for t in leaves)))) / (2 * step)).to(dtype)
    leaves, directions = ([t.to(dtype) for t in tensors] for tensors in (leaves, directions))
    with pytest.raises((NotImplementedError, RuntimeError)):
        jvp(lambda *t: scalar(case.call(*t)), tuple(leaves), tuple(directions))
    with forward_ad.dual_level():
        try:
            tangent = forward_ad.unpack_dual(scalar(case.call(*map(forward_ad.make_dual, leaves, directions)))).tangent
        except (NotImplementedError, RuntimeError):
            return
    assert tangent is not None, "the tangent is lost"
    torch.testing.assert_close(tangent, wanted, rtol=1e-5, atol=1e-7)


def by_jvp(function, at, directions):
    return jvp(function, at, directions)[1]


def by_dual_numbers(function, at, directions):
    with forward_ad.dual_level():
        return [forward_ad.unpack_dual(made).tangent for made in function(*map(forward_ad.make_dual, at, directions))]


@pytest.mark.parametrize("tangents", [by_jvp, by_dual_numbers])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_forward_mode_of_a_backward_pass_raises_or_is_right(case, dtype, tangents, backend):
    """A backward pass is linear in its upstream gradients: their tangents' is what it makes of the directions."""
    leaves = case.leaves(backend.device, dtype)
    outputs = [output for output in tupled(case.call(*leaves)) if output.requires_grad]
    ones = tuple(map(torch.ones_like, outputs))  # for which a gradient that forward made is taken as it is

    def gradients(*upstream):
        return torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)

    directions = tuple(3 * one for one in ones)
    wanted = gradients(*directions)
    try:
        made = tangents(gradients, ones, directions)
    except (NotImplementedError, RuntimeError):
        return
    torch.testing.assert_close(tuple(made), wanted)


def test_a_tangent_of_one_input_alone(backend):
    mu, logvar = numbers(2, 3, backend=backend), numbers(2, 3, backend=backend, seed=1).requires_grad_()
    with forward_ad.dual_level(), pytest.raises((NotImplementedError, RuntimeError)):
        sample_kl(forward_ad.make_dual(mu, torch.ones_like(mu)), logvar, seed=0)


def vmapped(gradients, upstream, used):
    """By torch.func, which takes no None."""
    batch = iter(vmap(lambda one: tuple(gradients(one)[k] for k in used))(upstream))
    return [next(batch) for _ in used]


def batched(gradients, upstream, used):
    """By PyTorch's old vmap."""
    made = gradients(upstream, is_grads_batched=True)
    assert [k for k, grad in enumerate(made) if grad is not None] == used
    return [made[k] for k in used]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("way", [vmapped, batched])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_batch_of_upstream_gradients(case, way, dtype, backend):
    """In the first backward pass, which may keep what forward made, and in a later one."""
    leaves = case.leaves(backend.device, dtype)
    for output, again in zip(tupled(case.call(*leaves)), tupled(case.call(*leaves)), strict=True):
        upstream = torch.stack([values(*output.shape, device=output.device, seed=i) for i in range(3)]).to(output.dtype)
        gradients, gradients_again = (
            functools.partial(torch.autograd.grad, o, leaves, retain_graph=True, allow_unused=True)
            for o in (output, again)
        )
        wanted = [torch.stack(same) for same in zip(*map(gradients, upstream)) if same[0] is not None]
        used = [k for k, grad in enumerate(gradients(upstream[0])) if grad is not None]
        for _ in range(2):
            torch.testing.assert_close(way(gradients_again, upstream, used), wanted)


def test_a_vectorised_jacobian(backend):
    logits, target = numbers(2, 3, backend=backend), numbers(2, 3, backend=backend, seed=1)
    made = torch.autograd.functional.jacobian(
        lambda a: reconstruction_loss(a, target, reduction="sample"), logits, vectorize=True
    )
    assert made.shape == (2, 2, 3)
    torch.testing.assert_close(made.sum(0), torch.sigmoid(logits) - target)


class Within(torch.autograd.Function):
    """A backward pass that calls a function."""

    @staticmethod
    def forward(ctx, x, function):
        ctx.function = function
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            ctx.function()
        return grad, None


def within_backward_passes(function, depth):
    """Call it inside `depth` backward passes, one within the other."""
    if depth == 0:
        function()
        return
    x = torch.ones((), requires_grad=True)
    Within.apply(x, lambda: within_backward_passes(function, depth - 1)).backward()


def test_a_batch_of_upstream_gradients_in_a_thread_of_autograd(backend):
    """As on every GPU: the thread of a backward pass knows that there is a batch, but not at which level of vmap."""
    logits, mu = (numbers(2, 3, backend=backend, seed=i).requires_grad_() for i in range(2))
    target, upstream = numbers(2, 3, backend=backend, seed=2), numbers(3, 2, backend=backend)

    def check():
        for leaf, loss, derivative in (
            (logits, reconstruction_loss(logits, target, reduction="sample"), torch.sigmoid(logits) - target),
            (mu, gaussian_kl(mu, target, reduction="sample"), mu),
        ):
            threads = []
            loss.register_hook(lambda grad: threads.append(threading.get_ident()))  # noqa: B023 (called at once)
            (batch,) = torch.autograd.grad(loss, leaf, upstream, is_grads_batched=True)
            torch.testing.assert_close(batch, upstream[..., None] * derivative)
            assert threads != [threading.get_ident()]

    within_backward_passes(check, 61)  # after so many autograd takes another thread on the CPU too


def test_batches_of_upstream_gradients_within_batches(backend):
    """Each upstream gradient may be batched at the outer level, at the inner one, or at both."""
    leaves = [numbers(2, 3, backend=backend, seed=i).requires_grad_() for i in range(2)]
    outputs = sample_kl(*leaves, seed=0)
    by_z, by_kl = numbers(4, 2, 3, backend=backend, seed=2), numbers(5, 2, backend=backend, seed=3)

    def gradients(*upstream):
        return torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)

    wanted = [torch.stack([torch.stack([gradients(a, b)[i] for b in by_kl]) for a in by_z]) for i in range(2)]
    for function in (gradients, lambda a, b: gradients(a + 0 * b.sum(), b)):
        actual = _vmap(lambda a: _vmap(lambda b: function(a, b))(by_kl))(by_z)  # noqa: B023 (called at once)
        torch.testing.assert_close(list(actual), wanted)
        actual = _vmap(lambda b: _vmap(lambda a: function(a, b))(by_z))(by_kl)  # noqa: B023
        torch.testing.assert_close([grad.transpose(0, 1) for grad in actual], wanted)


def test_a_batch_of_gradients_cannot_be_differentiated(backend):
    logits = numbers(2, 3, backend=backend).requires_grad_()
    loss = reconstruction_loss(logits, logits.detach(), reduction="sample")
    upstream = torch.eye(2, dtype=loss.dtype, device=loss.device)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss, logits, upstream, is_grads_batched=True, create_graph=True)


def test_vmap_over_nothing_is_refused(backend):
    with pytest.raises(ValueError, match="vmapped over a dimension of size 0"):
        torch.vmap(lambda m: gaussian_kl(m, m.clone()))(torch.zeros(0, 2, 3, device=backend.device))
