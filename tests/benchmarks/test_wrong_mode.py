"""Each tool in the mode in which it cannot work."""

import pytest
import torch

pytest.importorskip("triton")

from tests.benchmarks import sample_kernels
from vae_fast.benchmarks.launches import record_launches
from vae_fast.benchmarks.traffic import count_traffic


@pytest.mark.compiled_only
def test_traffic_says_that_the_interpreter_is_needed():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), count_traffic():
        pass


@pytest.mark.interpreter_only
def test_traffic_of_an_autotuned_kernel():
    x, y = torch.ones(8), torch.zeros(8)
    with pytest.raises(RuntimeError, match=r"is autotuned: launch .*\.fn\[grid\]"), count_traffic():
        sample_kernels.autotuned[(1,)](x, y, FUNCTION=sample_kernels.square_plus_exp, BLOCK=8)
    with pytest.raises(RuntimeError, match=r"^full_tiles is autotuned: launch full_tiles"), count_traffic():
        sample_kernels.tuned_by_rule[(1,)](x, y, FUNCTION=sample_kernels.square_plus_exp)
    with count_traffic() as traffic:
        sample_kernels.autotuned.fn[(1,)](x, y, FUNCTION=sample_kernels.square_plus_exp, BLOCK=8)
        sample_kernels.tuned_in_one_way[(1,)](x, y, FUNCTION=sample_kernels.square_plus_exp, BLOCK=8)
    assert traffic.moved() == 128


@pytest.mark.interpreter_only
def test_recording_says_that_compiled_kernels_are_needed():
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"), record_launches():
        pass
