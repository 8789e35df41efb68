"""Each tool in the mode in which it cannot work."""

import pytest

pytest.importorskip("triton")

from vae_fast.benchmarks.launches import record_launches
from vae_fast.benchmarks.traffic import count_traffic


@pytest.mark.compiled_only
def test_traffic_says_that_the_interpreter_is_needed():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), count_traffic():
        pass


@pytest.mark.interpreter_only
def test_recording_says_that_compiled_kernels_are_needed():
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"), record_launches():
        pass
