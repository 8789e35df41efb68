"""Student's t: its constant, many degrees of freedom, and PyTorch's density."""

import mpmath
import numpy as np
import pytest
import torch

from vae_fast import StudentT, reconstruction_loss
from vae_fast.reference import likelihoods as reference


@pytest.mark.parametrize("df", [1000.0, 1e4, 1e10, 1e17, 1e40, 1e307])
def test_a_student_t_of_many_degrees_is_a_gaussian(df, backend):
    mean, log_scale, x = (torch.randn(4, 99, device=backend.device, dtype=torch.float64) for _ in range(3))
    loss = reconstruction_loss((mean, log_scale), x, StudentT(df), reduction="none")
    square = ((x - mean) * torch.exp(-log_scale)).square()
    expected = log_scale + (df + 1) / 2 * torch.log1p(square / df) + float(_student_t_constant(df))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    single = reconstruction_loss((mean.float(), log_scale.float()), x.float(), StudentT(df), reduction="none")
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("df", [1e-3, 1.0, 5.0, 30.0, 31.0, 900.0, 1e4, 1e12, 1e40, 1e307])  # around the series' first
def test_the_constant_of_student_t(df):
    expected = pytest.approx(float(_student_t_constant(df)), rel=1e-14)
    assert StudentT(df).constants[1] == expected
    assert reference.student_t(*np.zeros((3, 1)), df=df)[0].item() == expected


def _student_t_constant(df):
    with mpmath.workdps(700):
        return (
            mpmath.log(mpmath.sqrt(df * mpmath.pi))
            + mpmath.loggamma(mpmath.mpf(df) / 2)
            - mpmath.loggamma((mpmath.mpf(df) + 1) / 2)
        )


@pytest.mark.parametrize("df", [0.5, 4.0, 300.0])
def test_student_t_is_that_of_torch(df, backend):
    mean, log_scale, x = (torch.randn(4, 99, device=backend.device, dtype=torch.float64) for _ in range(3))
    ours, theirs = ([mean.clone().requires_grad_(), log_scale.clone().requires_grad_()] for _ in range(2))
    loss = reconstruction_loss(tuple(ours), x, StudentT(df), reduction="none")
    expected = -torch.distributions.StudentT(df, theirs[0], theirs[1].exp()).log_prob(x)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-11)
    gradients = torch.autograd.grad(loss.sum(), ours), torch.autograd.grad(expected.sum(), theirs)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
