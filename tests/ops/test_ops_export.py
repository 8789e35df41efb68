"""Programs of torch.export: their graphs hold the raw ops, which are differentiable by themselves."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from tests.ops.cases import CASES, MAIN, SEED, case_id, scalar, tupled
from vae_fast import VAE, ELBOLoss, LinearWarmup, elbo_loss, gaussian_kl, reconstruction_loss, sample_kl

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


class Call(nn.Module):
    """A case of parameters that the program holds, so that only training differentiates it."""

    def __init__(self, case, leaves):
        super().__init__()
        self.case, self.leaves = case, nn.ParameterList(leaves)

    def forward(self, x):
        return tupled(self.case.call(*(leaf * x for leaf in self.leaves)))


def outputs_and_gradients(module, x):
    outputs = module(x)
    return outputs, torch.autograd.grad(scalar(outputs), list(module.parameters()))


# Noise that is drawn differs between a program and a call.
EXPORTED = [case for case in CASES if not case.name.endswith(("-sum", "-mean"))]


@pytest.mark.parametrize("case", EXPORTED, ids=case_id)
def test_an_exported_program_gives_the_outputs_and_gradients_of_the_call(case, backend):
    x = torch.ones((), device=backend.device)
    module = Call(case, [leaf.detach() for leaf in case.leaves(backend.device, torch.float32)])
    program = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(outputs_and_gradients(program, x), outputs_and_gradients(module, x))
    with torch.no_grad():
        torch.testing.assert_close(program(x), module(x))


@pytest.mark.parametrize("case", MAIN, ids=case_id)
def test_a_traced_graph_too(case, backend):
    leaves = case.leaves(backend.device, torch.float32)
    traced = make_fx(case.call)(*leaves)
    actual, wanted = tupled(traced(*leaves)), tupled(case.call(*leaves))
    gradients = [torch.autograd.grad(scalar(outputs), leaves) for outputs in (actual, wanted)]
    torch.testing.assert_close((actual, gradients[0]), (wanted, gradients[1]))


class WholeLoss(nn.Module):
    """The loss of a batch of any size, with a kl and a weight of each sample, and one number to learn."""

    def __init__(self, device):
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 0.5, device=device))

    def forward(self, x, weight):
        z, kl = sample_kl(self.scale * x, x - self.scale, seed=SEED)
        latents = gaussian_kl(self.scale * x, x, reduction="latent").sum()
        return elbo_loss(z * self.scale, x, kl, likelihood="mse", weight=weight).total + latents


@pytest.mark.parametrize("strict", [False, True])
def test_a_program_of_any_batch(strict, backend):
    module = WholeLoss(backend.device)
    first, other = (
        (torch.rand(size, 4, device=backend.device), torch.rand(size).to(backend.device)) for size in (6, 9)
    )
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, tuple(first), dynamic_shapes=({0: batch}, {0: batch}), strict=strict).module()
    with torch.no_grad():
        torch.testing.assert_close(program(*other), module(*other))


class Shared(nn.Module):
    """A loss with parameters for each latent and each channel, alone or with the dimensions that they lack."""

    def __init__(self, lead, device):
        super().__init__()
        self.mu, self.logvar, self.scale = (
            nn.Parameter(torch.full(shape, 0.5, device=device)) for shape in ((*lead, 4), (*lead, 4), (*lead, 4, 1, 1))
        )

    def forward(self, x, image):
        kl = gaussian_kl(x, x, prior=(self.mu, self.logvar))
        return kl + reconstruction_loss((image, self.scale), 0 * image, "gaussian")


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("lead", [(), (1,)], ids=["own", "all"])
def test_a_program_of_any_batch_with_shared_parameters(lead, strict, backend):
    """Not of any but 4: the first size of a parameter says nothing of the batch."""
    module = Shared(lead, backend.device)
    batches = [
        (torch.rand(size, 4).to(backend.device), torch.rand(size, 4, 3, 3).to(backend.device)) for size in (6, 4)
    ]
    batch = torch.export.Dim("batch")
    dynamic = ({0: batch}, {0: batch})
    program = torch.export.export(module, batches[0], dynamic_shapes=dynamic, strict=strict).module()
    torch.testing.assert_close(program(*batches[1]), module(*batches[1]))


class Counted(nn.Module):
    """A loss that counts its own steps."""

    def __init__(self, device):
        super().__init__()
        self.loss = ELBOLoss("mse", beta=LinearWarmup(4, start=0.25)).to(device)

    def forward(self, a, x):
        total = self.loss(a, x, gaussian_kl(a, a + 1)).total
        self.loss.advance()
        return total


@pytest.mark.parametrize("strict", [False, True])
def test_a_program_counts_steps(strict, backend):
    a, x = (torch.rand(3, 4, device=backend.device) for _ in range(2))
    program = torch.export.export(Counted(backend.device), (a, x), strict=strict).module()
    module = Counted(backend.device)
    for _ in range(3):
        torch.testing.assert_close(program(a, x), module(a, x))
    assert program.state_dict()["loss.step"] == module.loss.step == 3


class Loss(nn.Module):
    """Of one leaf."""

    def forward(self, a, x):
        z, kl = sample_kl(a, a, seed=SEED)
        return elbo_loss((z, a), x, kl, likelihood="gaussian").total + reconstruction_loss(a, x)


@pytest.fixture
def program(backend):
    """(the exported loss, what it takes)."""
    inputs = tuple(torch.rand(3, 4, device=backend.device) for _ in range(2))
    return torch.export.export(Loss(), inputs).module(), *inputs


def test_transforms_of_a_program(program):
    exported, a, x = program
    for transform in (torch.func.grad, torch.func.jacrev):
        torch.testing.assert_close(transform(exported)(a, x), transform(Loss())(a, x))
    leaves, targets = torch.stack([a, 2 * a]), torch.stack([x, x])
    each = [torch.vmap(torch.func.grad(f))(leaves, targets) for f in (exported, Loss())]
    torch.testing.assert_close(*each)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.func.grad(lambda a: torch.func.grad(exported)(a, x).sum())(a)


def test_what_a_program_does_not_differentiate_is_refused(program):
    exported, a, x = program
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        exported(torch.autograd.forward_ad.make_dual(a, torch.ones_like(a)), x)
    with pytest.raises(ValueError, match="^target requires a gradient"):
        exported(a, x.clone().requires_grad_())


def test_an_exported_model_reconstructs(backend):
    model, x = VAE((4, 4), 2, (8,)).to(backend.device), torch.rand(3, 4, 4, device=backend.device)
    program = torch.export.export(model, (x,)).module()
    output, z, mu, logvar, kl = program(x)
    torch.testing.assert_close((mu, logvar, kl), model(x)[2:])
    (output.sum() + z.sum() + kl.sum()).backward()
    assert all(parameter.grad is not None for parameter in program.parameters())


def test_raw_ops_refuse_gradients_of_noise_and_weights(backend):
    ops = torch.ops.vae_fast
    a, given = (torch.rand(3, 4, device=backend.device).requires_grad_() for _ in range(2))
    options = (None, None, "logvar", 0.0, 0.0, "closed_form", None, 0, backend.name, False)
    with pytest.raises(ValueError, match="^eps requires a gradient"):
        ops.gaussian_forward(a, a, None, None, None, given, "sum", *options)
    classes = torch.zeros(3, dtype=torch.int64, device=backend.device)
    with pytest.raises(ValueError, match="^weight requires a gradient"):
        ops.categorical_forward(a, classes, given[:, 0], None, "sum", False, backend.name)


def test_a_raw_op_that_is_differentiated_gives_all_it_has():
    a, x = torch.rand(3, 4).requires_grad_(), torch.ones(3, 4)
    op = torch.ops.vae_fast.reconstruction_forward
    made = op([a], x, None, None, 1.0, "poisson", "none", [True], "eager", True)
    assert len(made) == 2
    torch.testing.assert_close(torch.autograd.grad(made[0].sum(), a)[0], made[1])
