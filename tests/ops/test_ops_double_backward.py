"""A second derivative raises, always: to lose it would be silent. `create_graph=True` used once is right."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, hessian, jacrev

from tests.ops.cases import CASES, MAIN, case_id, scalar, values
from vae_fast import elbo_loss, gaussian_kl, reconstruction_loss, reparameterize

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch.func.hessian
TWICE = "cannot be differentiated twice"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_gradient_penalty_raises(case, backend):
    leaves = case.leaves(backend.device)
    gradients = torch.autograd.grad(scalar(case.call(*leaves)), leaves, create_graph=True)
    penalty = sum(g.square().sum() for g in gradients)
    with pytest.raises(RuntimeError, match=TWICE):
        penalty.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)  # small float32 ones go another way
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_in_each_leaf_alone_it_raises_or_is_right(case, dtype, backend):
    """The derivative of a penalty on the gradient in one leaf, where the others are constants."""
    for index in range(len(case.shapes)):

        def penalty(x, index=index):
            leaves = case.leaves(backend.device, x.dtype, requires_grad=False)
            leaves[index] = x
            (gradient,) = torch.autograd.grad(scalar(case.call(*leaves)), x, create_graph=True)
            return gradient.square().sum()

        x = case.leaves(backend.device, dtype)[index]
        second = _unless_it_raises(penalty(x), x)
        if second is not None:
            torch.testing.assert_close(second, _differences(penalty, x.detach()), rtol=1e-2, atol=1e-2)


def _unless_it_raises(value, x):
    """The gradient; zeros where `value` has no history, as in a sum of it and of another loss."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    try:
        return torch.autograd.grad(value, x, allow_unused=True, materialize_grads=True)[0]
    except RuntimeError as error:
        if TWICE not in str(error):
            raise
        return None


def _differences(function, x, step=1e-4):
    """The gradient of `function` by central differences in float64."""
    found = torch.empty_like(x, dtype=torch.float64)
    for place in range(x.numel()):
        around = [x.double().clone() for _ in range(2)]
        for at, sign in zip(around, (1, -1), strict=True):
            at.view(-1)[place] += sign * step
        above, below = (function(at.requires_grad_()).item() for at in around)
        found.view(-1)[place] = (above - below) / (2 * step)
    return found.to(x.dtype)


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_create_graph_used_once_gives_the_right_gradient(case, backend):
    leaves = case.leaves(backend.device)
    wanted = torch.autograd.grad(scalar(case.call(*leaves)), leaves)
    actual = torch.autograd.grad(scalar(case.call(*leaves)), leaves, create_graph=True)
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_func_grad_of_grad_raises(case, backend):
    leaves = case.leaves(backend.device, requires_grad=False)
    for index in range(len(leaves)):
        first = grad(lambda *t: scalar(case.call(*t)), argnums=index)
        if index == 0 and case.name.startswith(("elbo", "reparameterize")):
            continue  # linear in their first argument: exact, in the tests below
        with pytest.raises(RuntimeError, match=TWICE):
            grad(lambda *t: first(*t).square().sum(), argnums=index)(*leaves)  # noqa: B023 (called at once)


SECOND_DERIVATIVES = {
    "jacrev of grad": lambda function, x: jacrev(grad(function))(x),
    "func.hessian": lambda function, x: hessian(function)(x),
    "autograd.functional.hessian": lambda function, x: torch.autograd.functional.hessian(function, x),
    "vectorized hessian": lambda function, x: torch.autograd.functional.hessian(function, x, vectorize=True),
    "hvp": lambda function, x: torch.autograd.functional.hvp(function, x, torch.ones_like(x)),
    "vhp": lambda function, x: torch.autograd.functional.vhp(function, x, torch.ones_like(x)),
}


@pytest.mark.parametrize("second", SECOND_DERIVATIVES)
def test_second_derivatives_raise(second, backend):
    x = values(2, 3, device=backend.device)
    target, kl = torch.zeros_like(x), torch.ones_like(x[:, 0])
    for function in (
        lambda a: reconstruction_loss(a, target),
        lambda a: elbo_loss(a, target, kl).total,
        lambda a: gaussian_kl(a, target),
        lambda a: reparameterize(target, a, eps=x).sum(),
    ):
        with pytest.raises((RuntimeError, NotImplementedError), match=f"{TWICE}|jvp|Batching rule"):
            SECOND_DERIVATIVES[second](function, x)


def test_a_penalty_on_the_input_of_a_model_raises(backend):
    """The gradient at a model's input passes through ours, with a constant upstream."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3).to(backend.device, torch.float64)
    x = torch.rand(2, 3, device=backend.device, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(reconstruction_loss(model(x), x.detach()), x, create_graph=True)
    penalty = (gradient.norm() - 1).square()
    with pytest.raises(RuntimeError, match=TWICE):
        penalty.backward()


def test_the_elbo_is_linear_in_its_kl(backend):
    """Its second derivative through a kl of the user's own is PyTorch's, exactly."""
    logits = values(2, 3, device=backend.device)
    mu = values(2, 4, device=backend.device).requires_grad_()

    def total(kl_of_mu):
        return elbo_loss(logits, torch.zeros_like(logits), kl_of_mu, beta=0.5).kl

    (gradient,) = torch.autograd.grad(total(mu.pow(4).sum(1)), mu, create_graph=True)
    gradient.square().sum().backward()
    torch.testing.assert_close(mu.grad, 2 * (4 * mu**3 / 2) * (12 * mu**2 / 2))


def test_a_sample_is_linear_in_its_mean(backend):
    """Second derivatives of a function of z in mu go through PyTorch's own graph, exactly."""
    mu, logvar = (values(2, 4, device=backend.device, seed=i).requires_grad_() for i in range(2))
    z = reparameterize(mu, logvar, seed=0)
    (gradient,) = torch.autograd.grad(z.pow(3).sum(), mu, create_graph=True)
    by_mu, by_logvar = torch.autograd.grad(gradient.sum(), (mu, logvar))
    torch.testing.assert_close(by_mu, 6 * z)
    torch.testing.assert_close(by_logvar, 6 * z * (z - mu) / 2)


def test_a_penalty_beside_our_loss_is_untouched(backend):
    """Ours once, PyTorch's twice, in one graph."""
    x = values(2, 3, device=backend.device).requires_grad_()
    target = torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
    (reconstruction_loss(x, target, reduction="sum") + gradient.square().sum()).backward()
    torch.testing.assert_close(x.grad, torch.sigmoid(x) - target + 36 * x**3)


def test_compiled_code_raises_on_a_second_derivative(backend):
    torch._dynamo.reset()
    x = values(2, 3, device=backend.device).requires_grad_()
    compiled = torch.compile(lambda a: reconstruction_loss(a, torch.zeros_like(a)), backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward|does not require grad|" + TWICE):
        gradient.square().sum().backward()


def test_create_graph_with_an_upstream_of_the_loss_itself(backend):
    """The upstream gradient of log(loss) depends on the input too: once is right, twice raises."""
    x = values(2, 3, device=backend.device).requires_grad_()
    target = torch.zeros_like(x)
    loss = reconstruction_loss(x, target, reduction="sum").log()
    (actual,) = torch.autograd.grad(loss, x, create_graph=True)
    plain = F.binary_cross_entropy_with_logits(x, target, reduction="sum").log()
    torch.testing.assert_close(actual, torch.autograd.grad(plain, x)[0])
    with pytest.raises(RuntimeError, match=TWICE):
        actual.sum().backward()
