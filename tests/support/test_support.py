"""The test support itself: each assertion passes at its tolerance, and fails just beyond it."""

import numpy as np
import pytest
import torch

from tests.support import tolerance
from tests.support.environment import BACKENDS, INTERPRETED, describe, free_memory, skip_reason
from tests.support.tolerance import assert_close, assert_loss_close, assert_noise_close, assert_z_close
from tests.support.ulp import to_numpy, ulp, ulp_distance

HALVES = [torch.float16, torch.bfloat16]


def tensor(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


@pytest.fixture(autouse=True)
def _not_interpreted(monkeypatch):
    """The rule without the interpreter's allowance, whatever runs the tests."""
    monkeypatch.setattr(tolerance, "INTERPRETED", False)


class TestUlp:
    @pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
    @pytest.mark.parametrize("value", [1.0, -1.5, 2.0, 0.1, 1000.0, 0.0])
    def test_is_the_distance_to_the_next_number(self, dtype, value):
        x = torch.tensor(value, dtype=dtype).abs()
        following = torch.nextafter(x, torch.tensor(float("inf"), dtype=dtype))
        if value == 0.0:  # subnormal numbers are as far apart as the smallest normal ones
            assert ulp(value, dtype) == torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        else:
            assert ulp(x, dtype) == following.double() - x.double()

    def test_beyond_the_largest_number(self):
        assert ulp(np.array([np.inf, np.nan, 1e9]), torch.float16).tolist() == [32.0] * 3

    @pytest.mark.parametrize("dtype", HALVES)
    def test_distance_counts_numbers_across_zero(self, dtype):
        tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        a, b = tensor(-tiny, -0.0, 1.0, dtype=dtype), tensor(tiny, 0.0, 1.0, dtype=dtype)
        assert ulp_distance(a, b).tolist() == [2, 0, 0]
        assert ulp_distance(tensor(1.0, dtype=dtype), tensor(1.0 + ulp(1.0, dtype), dtype=dtype)).item() == 1

    def test_distance_wants_one_half_precision(self):
        with pytest.raises(TypeError, match="torch.float32"):
            ulp_distance(torch.zeros(1), torch.zeros(1))


class TestClose:
    def test_accepts_up_to_each_part_and_no_more(self):
        oracle = np.array([1.0, 0.0])
        eager = tensor(1.0 + 1e-5, 0.0, dtype=torch.float32)
        assert_close(tensor(1.0, 1.9e-5, dtype=torch.float32), oracle, eager)
        with pytest.raises(AssertionError, match=r"1 of 2 elements are off; the worst, at \[1\]: got 2.2"):
            assert_close(tensor(1.0, 2.2e-5, dtype=torch.float32), oracle, eager)
        assert_close(tensor(1.0, 2.2e-5, dtype=torch.float32), oracle, eager, atol=5e-6)
        assert_close(tensor(1.0, 2.2e-5, dtype=torch.float32), oracle, eager, terms=[1.0, 5.0])

    def test_large_exponents_are_allowed_more(self):
        actual, oracle = tensor(1.0 + 3e-6, dtype=torch.float32), np.array([1.0])
        assert_close(actual, oracle, actual * 0 + 1, exponent=50.0)
        with pytest.raises(AssertionError, match="allowed 1e-06"):
            assert_close(actual, oracle, actual * 0 + 1)

    def test_float64_is_held_to_its_own_precision(self):
        exact = tensor(1.0)
        assert_close(tensor(1.0 + 1e-15), [1.0], exact)
        with pytest.raises(AssertionError, match="elements are off"):
            assert_close(tensor(1.0 + 1e-12), [1.0], exact)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_without_eager_one_ulp(self, dtype):
        step = ulp(1.0, dtype)
        assert_close(tensor(1 + step, dtype=dtype), [1.0])
        with pytest.raises(AssertionError, match=r"\(1 ulp\)"):
            assert_close(tensor(1 + 2 * step, dtype=dtype), [1.0])

    def test_the_interpreter_truncates_bfloat16(self, monkeypatch):
        actual = tensor(1 + 2 * ulp(1.0, torch.bfloat16), dtype=torch.bfloat16)
        monkeypatch.setattr(tolerance, "INTERPRETED", True)
        assert_close(actual, [1.0])
        with pytest.raises(AssertionError, match="truncation"):
            assert_close(actual + ulp(1.0, torch.bfloat16), [1.0])
        with pytest.raises(AssertionError, match="elements are off"):
            assert_close(tensor(1 + 2 * ulp(1.0, torch.float16), dtype=torch.float16), [1.0])

    def test_names_the_worst_element(self):
        actual = torch.zeros(2, 3)
        actual[1, 2], actual[0, 0] = 5.0, 1.0
        with pytest.raises(
            AssertionError, match=r"2 of 6 .* \[1, 2\]: got 5, oracle 0, error 5, allowed 0.5 = 0.5 \(at"
        ):
            assert_close(actual, np.zeros((2, 3)), torch.zeros(2, 3), atol=0.5)

    def test_shapes_must_be_equal(self):
        with pytest.raises(AssertionError, match=r"shape \[1\], the oracle's is \[2, 1\]"):
            assert_close(tensor(0.0), np.zeros((2, 1)))

    def test_empty_is_close(self):
        assert_close(torch.zeros(0), np.zeros(0), torch.zeros(0))

    def test_finds_what_nobody_wrote(self):
        with pytest.raises(AssertionError, match=r"at \[0\]: got nan, oracle 0"):
            assert_close(torch.empty(1), np.zeros(1), atol=1.0)

    @pytest.mark.parametrize(
        ("value", "oracle", "accepted"),
        [
            (np.nan, np.nan, True),
            (1.0, np.nan, False),
            (np.inf, np.nan, False),
            (np.inf, np.inf, True),
            (np.nan, np.inf, True),  # infinite in gives non-finite out
            (65504.0, np.inf, False),
            (np.inf, 70000.0, True),  # the oracle overflows float16
            (-np.inf, 70000.0, False),
            (np.inf, 60000.0, False),
            (np.nan, 70000.0, False),
        ],
    )
    def test_non_finite(self, value, oracle, accepted):
        actual = tensor(value, dtype=torch.float16)
        if accepted:
            assert_close(actual, [oracle])
        else:
            with pytest.raises(AssertionError, match="1 of 1"):
                assert_close(actual, [oracle])


class TestOthers:
    def test_loss(self):
        assert_loss_close(tensor(0.9e-6, dtype=torch.float32), [0.0], terms=[1.0])
        with pytest.raises(AssertionError, match="terms"):
            assert_loss_close(tensor(1.1e-6, dtype=torch.float32), [0.0], terms=[1.0])

    def test_noise(self):
        assert_noise_close(tensor(0.5 + 1.9e-6), [0.5])
        with pytest.raises(AssertionError, match="noise"):
            assert_noise_close(tensor(0.5 + 2.1e-6), [0.5])
        step = ulp(0.5, torch.bfloat16)
        assert_noise_close(tensor(0.5 + step, dtype=torch.bfloat16), [0.5])
        with pytest.raises(AssertionError, match="noise"):
            assert_noise_close(tensor(0.5 + 2 * step, dtype=torch.bfloat16), [0.5])

    def test_sample(self):
        mu, logvar, eps = np.array([0.0]), np.array([4.0]), np.array([1.0])
        std = np.exp(2.0)
        allowed = 2e-6 * std + (3e-7 + 4e-8 * 4) * std + 2 * ulp(std, torch.float64)
        assert_z_close(tensor(std + 0.99 * allowed), mu, logvar, eps)
        for wrong in (1.01, -1.01):
            with pytest.raises(AssertionError, match="1 of 1"):
                assert_z_close(tensor(std + wrong * allowed), mu, logvar, eps)
        with pytest.raises(AssertionError, match="oracle 3"):
            assert_z_close(tensor(std), mu, logvar, eps, oracle=[3.0])

    def test_sample_in_half_precision(self):
        z = tensor(1 + 2 * ulp(1.0, torch.bfloat16), dtype=torch.bfloat16)
        assert_z_close(z, [1.0], [-60.0], [1.0])
        with pytest.raises(AssertionError, match="2 ulp"):
            assert_z_close(z + ulp(1.0, torch.bfloat16), [1.0], [-60.0], [1.0])

    def test_numpy_of_any_tensor(self):
        grad = tensor(1.5, dtype=torch.bfloat16).requires_grad_()
        assert to_numpy(grad).dtype == np.float64
        assert to_numpy([1, 2]).tolist() == [1.0, 2.0]


class TestEnvironment:
    def test_eager_on_the_cpu_always_runs(self):
        assert str(BACKENDS[0]) == "eager-cpu"
        assert ("triton-cpu" in map(str, BACKENDS)) == INTERPRETED

    def test_the_head_names_versions_mode_and_device(self):
        assert torch.__version__ in describe()
        assert ("interpreter" in describe()) == INTERPRETED

    def test_each_mode_skips_the_tests_of_the_other(self):
        pytest.importorskip("triton")
        other = "compiled_only" if INTERPRETED else "interpreter_only"
        same = "interpreter_only" if INTERPRETED else "compiled_only"
        assert "TRITON_INTERPRET" in skip_reason(other)
        assert skip_reason(same) is None

    def test_devices_and_memory(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        assert "needs" in skip_reason("cuda_only") or "not installed" in skip_reason("cuda_only")
        assert skip_reason("multi_gpu") == "needs two GPUs, found 0"
        assert skip_reason("big_memory", (0,)) is None
        assert "free memory on cpu" in skip_reason("big_memory", (2**40,))
        assert "found 0.0" in skip_reason("big_memory", (1,), {"device": "cuda"})
        assert free_memory("cpu") >= 0


class TestPoison:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
    def test_new_tensors_are_nan(self, dtype):
        like = torch.zeros(2, 3, dtype=dtype)
        for new in (
            torch.empty(2, 3, dtype=dtype),
            torch.empty_like(like),
            torch.empty_like(like.T),
            torch.empty_strided((2, 3), (1, 2), dtype=dtype),
            like.new_empty(2, 3),
        ):
            assert new.isnan().all()

    def test_integers_have_their_largest_value(self):
        assert torch.empty(2, dtype=torch.int64).tolist() == [2**63 - 1] * 2
        assert torch.empty(2, dtype=torch.uint8).tolist() == [255] * 2

    @pytest.mark.no_poison("shows the way out")
    def test_can_be_left_out(self):
        assert not torch.are_deterministic_algorithms_enabled()

    def test_compiled_graphs_are_as_without(self):
        def ones(x):
            return torch.empty_like(x).copy_(x) * 0 + 1

        assert torch.compile(ones, backend="aot_eager", fullgraph=True)(torch.zeros(3)).tolist() == [1.0] * 3


@pytest.mark.parametrize("_", [1, 2])
def test_each_test_draws_the_same_numbers(_):
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
