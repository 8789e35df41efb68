"""torch.compile where a number, or a tensor of one, is another in each call."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.cases import values
from tests.ops.test_ops_compile import batch, counted
from tests.support.environment import INTERPRETED, inductor_for_cpu
from vae_fast import DiagonalGaussian, ELBOLoss, capacity, elbo_loss, free_bits, gaussian_kl, reparameterize

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),  # Inductor's own
]


def test_another_beta_tensor_does_not_recompile(backend):
    def loss(logits, target, kl, beta):
        return elbo_loss(logits, target, kl, beta=beta).total

    compiled, counter = counted(loss)
    _, logits, target = batch(3, backend.device)
    kl = torch.arange(3.0, device=backend.device)
    for beta in (0.0, 0.5, 4.0):
        beta = torch.tensor(beta, device=backend.device)
        torch.testing.assert_close(compiled(logits, target, kl, beta), loss(logits, target, kl, beta))
    assert counter.frame_count == 1


# What is made of one that varies, logits, a target in [0, 1] and a kl.
ANNEALED = {
    "beta": lambda number, a, x, kl: elbo_loss(a, x, kl, beta=number).total,
    "beta of classes": lambda number, a, x, kl: elbo_loss(a, x[:, 0].long(), kl, likelihood="categorical", beta=number)[
        0
    ],
    "free_bits": lambda number, a, x, kl: free_bits(kl, number),
    "free_bits of latents": lambda number, a, x, kl: free_bits(kl, number, per="latent"),
    "capacity": lambda number, a, x, kl: capacity(kl, number),
    "a module": lambda number, a, x, kl: ELBOLoss(beta=number, free_bits=number)(a, x, kl).total,
}


# With gradients, and with the generated code that goes wrong outside autograd.
@pytest.mark.parametrize(
    ("tracked", "compiler"), [(True, "aot_eager"), pytest.param(False, "inductor", marks=inductor_for_cpu)]
)
@pytest.mark.parametrize("name", ANNEALED)
def test_an_annealed_number_is_compiled_for_a_few_times(name, tracked, compiler, backend):
    """As a constant, as one that varies, and for a beta as the 1 by which nothing is multiplied."""
    function, counter = ANNEALED[name], CompileCounterWithBackend(compiler)
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    a, x, kl = (values(*s, device=backend.device, dtype=torch.float32, seed=3) for s in ((3, 5), (3, 5), (3,)))
    leaves, x = (a, kl), x.sigmoid()
    for leaf in leaves:
        leaf.requires_grad_(tracked)
    for number in (0.1, 0.2, 0.3, 0.6, 1.0, 0.8):
        actual, expected = compiled(number, a, x, kl), function(number, a, x, kl)
        torch.testing.assert_close(actual, expected)
        if tracked:
            gradients = [torch.autograd.grad(y.sum(), leaves, allow_unused=True) for y in (actual, expected)]
            torch.testing.assert_close(*gradients)
    assert counter.frame_count <= 4


CLAMPED = {
    "gaussian_kl": lambda bound, mu, logvar: gaussian_kl(mu, logvar, logvar_clamp=(-bound, bound)),
    "log_prob": lambda bound, mu, logvar: DiagonalGaussian(mu, logvar, logvar_clamp=(-bound, bound)).log_prob(mu + 1),
}


@inductor_for_cpu
@pytest.mark.skipif(INTERPRETED, reason="Inductor compiles for the CPU")
@pytest.mark.parametrize("name", CLAMPED)
def test_bounds_that_vary_are_each_calls_own(name):
    function = CLAMPED[name]
    compiled = torch.compile(function, fullgraph=True)
    mu, logvar = (values(3, 5, device="cpu", dtype=torch.float32, seed=i) for i in range(2))
    for bound in (0.1, 0.2, 0.3, 0.6, 1.0):
        torch.testing.assert_close(compiled(bound, mu, logvar), function(bound, mu, logvar))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_numbers_are_constants_of_an_exported_program(strict, backend):
    class Objective(torch.nn.Module):
        def forward(self, a, x, kl):
            return elbo_loss(a, x, free_bits(kl, 0.5), beta=0.25).total

    a, x, kl = (values(*s, device=backend.device, dtype=torch.float32, seed=3) for s in ((3, 5), (3, 5), (3,)))
    program = torch.export.export(Objective(), (a, x.sigmoid(), kl), strict=strict)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not any("aten.ones" in name or "aten.mul" in name for name in called)
    torch.testing.assert_close(program.module()(a, x.sigmoid(), kl), Objective()(a, x.sigmoid(), kl))


def test_another_seed_int_recompiles_once(backend):
    compiled, counter = counted(lambda mu, logvar, seed: reparameterize(mu, logvar, seed=seed))
    mu, logvar = (t.requires_grad_() for t in (torch.zeros(2, 6, device=backend.device) for _ in range(2)))
    for seed in (2, 3, -5, 2**62):
        torch.testing.assert_close(compiled(mu, logvar, seed), reparameterize(mu, logvar, seed=seed))
    assert counter.frame_count <= 2


def test_another_seed_tensor_does_not_recompile(backend):
    compiled, counter = counted(lambda mu, logvar, seed: reparameterize(mu, logvar, seed=seed))
    mu, logvar = (values(2, 6, device=backend.device, dtype=torch.float32, seed=i) for i in range(2))
    for number in (0, 1, -1):
        seed = torch.tensor([number], device=backend.device)
        torch.testing.assert_close(compiled(mu, logvar, seed), reparameterize(mu, logvar, seed=seed))
    assert counter.frame_count == 1
