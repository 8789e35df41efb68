"""Faults that users of other projects reported: torch.compile, small batches, machines without Triton."""

import collections
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.cases import values
from tests.support.environment import INTERPRETED
from vae_fast import elbo_loss, sample_kl


def training_step(moments, logits, target, **noise):
    """The whole loss of a VAE, forward and backward; its gradients."""
    mu, logvar = moments.chunk(2, dim=1)
    z, kl = sample_kl(mu, logvar, **noise)
    total = elbo_loss(logits + z.sum() * 0, target, kl).total
    return total, torch.autograd.grad(total, (moments, logits))


def loss(moments, logits, target):
    mu, logvar = moments.chunk(2, dim=1)
    z, kl = sample_kl(mu, logvar, seed=1)
    return elbo_loss(logits * z.mean(), target, kl).total


def batch(size, device):
    moments, logits, target = (values(size, 6, device=device, dtype=torch.float32, seed=size + i) for i in range(3))
    return moments.requires_grad_(), logits.requires_grad_(), target


@pytest.mark.parametrize("dynamic", [False, True, None], ids=["static", "dynamic", "automatic"])
def test_compiled_losses_and_gradients_are_eagers_with_few_recompiles(dynamic, backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=dynamic)
    loss_of_one = compiled(*batch(3, backend.device))
    torch.testing.assert_close(loss_of_one, loss(*batch(3, backend.device)))
    compilations = counter.frame_count
    for size in (3, 3) if dynamic is False else (4, 7, 64, 5):
        tensors = batch(size, backend.device)
        actual, wanted = compiled(*tensors), loss(*tensors)
        torch.testing.assert_close(actual, wanted)
        torch.testing.assert_close(torch.autograd.grad(actual, tensors[:2]), torch.autograd.grad(wanted, tensors[:2]))
    assert counter.frame_count - compilations <= (1 if dynamic is None else 0)


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators: on a GPU, each is a launch or a trip through the dispatcher."""

    VIEWS = ("aten.view", "aten.detach", "aten.expand", "aten.alias", "aten.split", "aten.reshape", "aten.as_strided",
             "aten.unsqueeze", "aten.slice", "aten.t.", "aten.empty", "aten.new_empty", "aten.select", "aten.permute",
             "prim.device", "aten.stack", "aten.lift_fresh")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not str(function).startswith(self.VIEWS):
            self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def counted(function, *args):
    with Operators() as operators:
        function(*args)
    return operators.counts


def formula(moments, logits, target):
    """As the usual examples have it."""
    mu, logvar = moments.chunk(2, dim=1)
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    bce = F.binary_cross_entropy_with_logits(logits + z.sum() * 0, target, reduction="sum")
    total = (bce + kl) / len(target)
    return total, torch.autograd.grad(total, (moments, logits))


def test_a_small_batch_calls_fewer_operators_than_the_formula(backend):
    """Speed is the benchmarks'; what it is made of at small sizes is the number of operators."""
    tensors = batch(4, backend.device)
    assert 3 * sum(counted(training_step, *tensors).values()) <= 2 * sum(counted(formula, *tensors).values())


own_process = pytest.mark.skipif(INTERPRETED, reason="runs in its own process, which has no interpreter in any case")

WITHOUT_TRITON = """
    import sys
    from importlib.machinery import PathFinder

    find = PathFinder.find_spec
    PathFinder.find_spec = lambda name, *where: None if name.partition(".")[0] == "triton" else find(name, *where)
    import torch
    import vae_fast
"""


def python(code, **environment):
    variables = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PATH": os.defpath, **environment}
    run = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(run, capture_output=True, text=True, env=variables, check=False)


def python_without_triton(code, **environment):
    """Run code where Triton cannot be found."""
    return python(textwrap.dedent(WITHOUT_TRITON) + textwrap.dedent(code), **environment)


@own_process
def test_without_triton_cpu_tensors_work():
    done = python_without_triton("""
        mu = torch.zeros(4, 3, requires_grad=True)
        for backend in ("auto", "eager"):
            with vae_fast.use_backend(backend):
                z, kl = vae_fast.sample_kl(mu, torch.zeros(4, 3), seed=0)
                vae_fast.elbo_loss(z, torch.ones(4, 3), kl).total.backward()
                vae_fast.sample_kl_packed(torch.zeros(4, 6))
                vae_fast.reconstruction_loss(mu, torch.ones(4, 3))
        assert mu.grad.any()
        assert not any(name.partition(".")[0] == "triton" for name in sys.modules)
        assert not any(name.startswith("vae_fast.kernels") for name in sys.modules)
        print("works")
    """)
    assert (done.stdout, done.stderr) == ("works\n", "")


@own_process
def test_another_default_device_changes_nothing_for_cpu_tensors():
    done = python("""
        import torch

        torch.set_default_device("meta")
        import vae_fast
        import vae_fast.functional

        mu = torch.zeros(4, 3, device="cpu", requires_grad=True)
        vae_fast.sample_kl(mu, mu + 1)[1].sum().backward()
        vae_fast.gaussian_kl(mu, mu + 1, logvar_clamp=(-1, 2)).backward()
        vae_fast.reconstruction_loss(mu, torch.ones(4, 3, device="cpu"), "log_cosh").backward()
        assert mu.grad.device.type == "cpu" and mu.grad.isfinite().all()
        print("works")
    """)
    assert (done.stdout, done.stderr) == ("works\n", "")


@own_process
def test_a_first_import_among_fake_tensors_changes_nothing_for_real_ones():
    done = python("""
        import torch
        from torch._subclasses import FakeTensorMode

        with FakeTensorMode():
            import vae_fast

            vae_fast.VAE((4, 4), 2).loss(torch.rand(3, 4, 4)).total.backward()
        vae_fast.VAE((4, 4), 2).loss(torch.rand(3, 4, 4)).total.backward()
        print("works")
    """)
    assert (done.stdout, done.stderr) == ("works\n", "")


@own_process
def test_without_triton_forcing_it_says_what_to_do():
    done = python_without_triton("""
        with vae_fast.use_backend("triton"):
            try:
                vae_fast.gaussian_kl(torch.zeros(4, 3), torch.zeros(4, 3))
            except RuntimeError as error:
                print(error)
    """)
    assert done.stderr == ""
    assert 'backend is "triton"' in done.stdout
    assert "not installed" in done.stdout
    assert '"eager"' in done.stdout


@own_process
def test_without_triton_the_environment_variable_says_what_to_do():
    code = "vae_fast.gaussian_kl(torch.zeros(4, 3), torch.zeros(4, 3))"
    done = python_without_triton(code, VAE_FAST_BACKEND="triton")
    assert "RuntimeError: backend is" in done.stderr
    assert "not installed" in done.stderr


@own_process
def test_without_triton_cuda_tensors_take_the_eager_path():
    done = python_without_triton("""
        from types import SimpleNamespace
        from vae_fast.ops import backend
        print(backend.choose(SimpleNamespace(is_cuda=True, device="cuda:0")))
    """)
    assert done.stdout == "eager\n"


@own_process
def test_importing_does_not_import_triton_or_what_trains():
    done = python("""
        import sys, vae_fast, torch
        vae_fast.gaussian_kl(torch.zeros(1, 1), torch.zeros(1, 1))
        heavy = {"triton", "lightning", "matplotlib", "typer", "sklearn", "safetensors"}
        print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
    """)
    assert (done.stdout, done.stderr) == ("[]\n", "")
