"""Programs of torch.export: their graphs hold the raw ops, which are differentiable by themselves."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from tests.ops.cases import CASES, MAIN, case_id, scalar, tupled
from vae_fast import VAE

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


def test_an_exported_model_reconstructs(backend):
    model, x = VAE((4, 4), 2, (8,)).to(backend.device), torch.rand(3, 4, 4, device=backend.device)
    program = torch.export.export(model, (x,)).module()
    output, z, mu, logvar, kl = program(x)
    torch.testing.assert_close((mu, logvar, kl), model(x)[2:])
    (output.sum() + z.sum() + kl.sum()).backward()
    assert all(parameter.grad is not None for parameter in program.parameters())
