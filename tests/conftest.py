"""Fixtures and markers of all tests; what they are made of is in tests/support."""

import contextlib
import gc
from unittest.mock import MagicMock

import pytest
import torch

from tests.support.environment import BACKENDS, HAS_TRITON, INTERPRETED, MARKERS, describe, skip_reason
from tests.support.poison import poisoned


def pytest_configure(config):
    for marker, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{marker}: {meaning}")
    if INTERPRETED:
        from vae_fast.benchmarks import interpreter

        interpreter.patch_once()
    config.addinivalue_line("filterwarnings", "ignore:.*does not have a deterministic implementation:UserWarning")


def pytest_collection_finish():
    """Python's garbage collector need not look at a million objects of imports and tests again and again."""
    gc.collect()
    gc.freeze()


def pytest_report_header():
    return f"vae_fast: {describe()}"


def pytest_runtest_setup(item):
    for marker in item.iter_markers():
        reason = skip_reason(marker.name, marker.args, marker.kwargs)
        if reason:
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def _poison(request):
    """Uninitialised memory is NaN, unless the test is marked no_poison("why")."""
    marker = request.node.get_closest_marker("no_poison")
    if marker is not None and not (marker.args and str(marker.args[0]).strip()):
        pytest.fail('no_poison needs a reason: @pytest.mark.no_poison("why")')
    with contextlib.nullcontext() if marker else poisoned():
        yield


@pytest.fixture(autouse=True)
def _seed():
    """Every test draws the same numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture
def planning_anew():
    """Launches are planned at each call: for tests that change what plans are made of, or watch how they are made."""
    if not HAS_TRITON:
        yield
        return
    from vae_fast.kernels import launching

    with launching.planning_anew():
        yield


# The process that interprets the kernels leaves eager to the one that does not.
@pytest.fixture(params=[b for b in BACKENDS if b.name == "triton" or not INTERPRETED], ids=str)
def backend(request):
    """Each backend that can run here, in use: `backend.name`, and `backend.device` for the tensors."""
    from vae_fast import use_backend

    with use_backend(request.param.name):
        yield request.param


@pytest.fixture
def played_cuda(monkeypatch):
    """A CUDA that captures nothing, on CPU tensors."""
    from vae_fast import graphs

    for name in ("Stream", "current_stream", "CUDAGraph", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch.cuda.memory, name, MagicMock())
    for name in ("stream", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, **options: contextlib.nullcontext())
    monkeypatch.setattr(graphs, "_check_example", lambda example, model: None)
    monkeypatch.setattr(graphs, "_check_optimizer", lambda optimizer: None)
