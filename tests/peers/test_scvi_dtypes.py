"""The dtypes of scvi-tools' likelihoods of counts, patched against its own."""

import pytest
import torch

pytest.importorskip("scvi", reason="scvi-tools is not installed: make test-peers", exc_type=ModuleNotFoundError)

from tests.peers.curves import goes_through_ours
from tests.peers.test_scvi_counts import MAKE, kinds, log_prob, problem, value_and_gradients
from vae_fast.integrations import scvi as fast


@kinds
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.float64], ids=str)
def test_counts_of_another_dtype(dtype, kind, backend):
    x, params = problem(backend.device)
    expected = value_and_gradients(kind, x.to(dtype), params)
    with fast.patch():
        ours = value_and_gradients(kind, x.to(dtype), params)
        assert goes_through_ours(ours[0])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)  # and the dtypes


@kinds
@pytest.mark.parametrize("dtypes", [("bfloat16",) * 3, ("float32", "float32", "bfloat16")], ids=["all", "pi alone"])
def test_parameters_of_lower_precision(dtypes, kind, backend):
    """All of them, or the one that a layer computes under autocast: the result has the dtype of theirs."""
    x, params = problem(backend.device)
    params = [p.detach().to(getattr(torch, dtype)).requires_grad_() for p, dtype in zip(params, dtypes)]
    x = x.to(params[0].dtype)
    theirs, exact = log_prob(kind, x, params), log_prob(kind, x.double(), [p.double() for p in params])
    with fast.patch():
        ours = log_prob(kind, x, params)
    assert goes_through_ours(ours)
    assert ours.dtype == theirs.dtype
    loose = {"rtol": 1e-2, "atol": 1e-2} if ours.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours.double(), exact, **loose)


def test_whole_counts_beside_bfloat16_are_not_rounded():
    """257 is no bfloat16."""
    x = torch.tensor([[257, 1001]])
    params = [torch.full((1, 2), value, dtype=torch.bfloat16) for value in (20.0, 2.0, -1.0)]
    exact = MAKE["zinb"](*(p.double() for p in params)).log_prob(x.double())
    with fast.patch():
        torch.testing.assert_close(MAKE["zinb"](*params).log_prob(x).double(), exact, rtol=1e-5, atol=0.0)


def test_a_bfloat16_rate_keeps_its_digits():
    """exp(log(100)) in bfloat16 is 98.9."""
    rate = torch.full((1, 2), 100.0, dtype=torch.bfloat16)
    with fast.patch():
        assert MAKE["poisson"](rate, None, None).log_prob(torch.zeros_like(rate)).eq(-100).all()


@kinds
@pytest.mark.parametrize("default", [torch.float32, torch.float16], ids=str)
def test_whole_counts_beside_half_precision(default, kind):
    """Theirs takes the lgamma of counts, which has the default dtype."""
    x = torch.tensor([[0, 3]])
    params = [torch.ones(1, 2, dtype=torch.float16) for _ in range(3)]
    torch.set_default_dtype(default)
    try:
        expected = log_prob(kind, x, params)
        with fast.patch():
            ours = log_prob(kind, x, params)
    finally:
        torch.set_default_dtype(torch.float32)
    assert ours.dtype == expected.dtype
    if default == torch.float32:  # with the other theirs loses its digits
        torch.testing.assert_close(ours, expected, rtol=4e-3, atol=4e-3)
