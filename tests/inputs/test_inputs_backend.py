"""What the choice of a backend says of bad names, in code and in the environment."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.support.environment import INTERPRETED
from vae_fast import gaussian_kl, use_backend
from vae_fast.ops import backend as backends

NAMES = "'triton', 'eager', 'auto'"


def enter(name):
    with use_backend(name):
        pass


@pytest.mark.parametrize(
    "name", ["cuda", "Triton", "", None, 0, True, ["triton"], torch.device("cpu"), np.ones(2)], ids=repr
)
def test_names(name):
    before = backends._current
    with pytest.raises(ValueError, match=r"expected one of") as caught:
        enter(name)
    assert str(caught.value) == f"backend is {name!r}: expected one of {NAMES}"
    assert backends._current == before


def test_a_bad_name_is_refused_before_the_block():
    """`use_backend` without `with` does nothing: a name that is wrong says so at least."""
    with pytest.raises(ValueError, match="backend is 'nonsense'"):
        use_backend("nonsense")


@pytest.mark.parametrize("name", ["triton", "eager", "auto"])
def test_good_names_nest_and_decorate(name):
    @use_backend(name)
    def inside():
        return backends._current

    with use_backend("eager"), use_backend("auto"):
        assert (inside(), backends._current) == (name, "auto")
    assert inside() == name


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_triton_on_a_cpu_tensor(requires_grad):
    """Also on the short path to the kernels, of tensors with a gradient."""
    message = (
        'backend is "triton", but the tensor is on cpu: move it to CUDA, use "eager" or "auto", '
        "or set TRITON_INTERPRET=1 before Python starts, to interpret the kernels on the CPU"
    )
    with use_backend("triton"), pytest.raises(RuntimeError) as caught:
        gaussian_kl(torch.zeros(4, 3, requires_grad=requires_grad), torch.zeros(4, 3))
    assert str(caught.value) == message


own_process = pytest.mark.skipif(INTERPRETED, reason="runs in its own process, which has no interpreter in any case")


def python(code, **environment):
    variables = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PATH": os.defpath, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)


@own_process
@pytest.mark.parametrize("name", ["cuda", "TRITON", " eager"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_environment_variable_is_checked_where_it_is_used(requires_grad, name):
    """Also on the short path of small tensors."""
    code = f"import torch, vae_fast; t = torch.zeros(4, 3, requires_grad={requires_grad}); vae_fast.gaussian_kl(t, t)"
    done = python(code, VAE_FAST_BACKEND=name)
    assert done.stderr.endswith(f"ValueError: VAE_FAST_BACKEND is {name!r}: expected one of {NAMES}\n")


@own_process
def test_a_bad_environment_variable_is_nothing_to_a_backend_that_is_named():
    code = (
        "import torch, vae_fast\n"
        "with vae_fast.use_backend('eager'): print(vae_fast.gaussian_kl(torch.zeros(4, 3), torch.zeros(4, 3)).item())"
    )
    done = python(code, VAE_FAST_BACKEND="cuda")
    assert (done.stdout, done.stderr) == ("0.0\n", "")


@own_process
@pytest.mark.parametrize(("environment", "wanted"), [
    ({}, "auto"), ({"VAE_FAST_BACKEND": "eager"}, "eager"),
])  # fmt: skip
def test_the_environment_variable_is_the_default(environment, wanted):
    code = "import vae_fast; from vae_fast.ops import backend; print(backend._current)"
    done = python(code, **environment)
    assert (done.stdout, done.stderr) == (f"{wanted}\n", "")
