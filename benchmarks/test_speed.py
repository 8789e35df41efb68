"""The tables in pytest-benchmark: it times every contender on the host, and keeps what `measure` found as extra_info.

    python -m pytest vae_fast/benchmarks/test_speed.py -k "quick and mse and not compile" --benchmark-json=speed.json

`vae-fast bench` measures the same without pytest, and writes a report.
"""

import dataclasses

import pytest
import torch

from vae_fast.benchmarks import cases, entrants, measure, timing
from vae_fast.benchmarks.contenders import CONTENDERS
from vae_fast.benchmarks.results import OK

ROUNDS = 100
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def rows_of(request):
    """The rows of a case, measured once, in turns, for those of its contenders that were selected."""
    session = measure.begin(DEVICE)
    chosen = {}
    for item in request.session.items:
        if item.function is test_speed:
            case, contender = item.callspec.params["case"], item.callspec.params["contender"]
            chosen.setdefault(case.name, {})[contender.name] = contender
    measured = {}

    def rows(case):
        if case.name not in measured:
            measured[case.name] = measure.measure(case, session, chosen[case.name])
        return measured[case.name]

    return rows


@pytest.mark.parametrize("contender", CONTENDERS.values(), ids=lambda contender: contender.name.replace(" ", "_"))
@pytest.mark.parametrize("case", cases.CASES.values(), ids=lambda case: case.name + "-quick" * case.quick)
def test_speed(case, contender, rows_of, benchmark):
    if not contender.runs(case, DEVICE):
        pytest.skip("CUDA graphs are of whole steps, on a GPU; other projects' steps are neither captured nor compiled")
    rows = [row for row in rows_of(case) if row.contender in (contender.name, "")]
    faults = {row.status for row in rows if row.status != OK}
    if faults:
        (pytest.fail if any(fault.startswith("wrong") for fault in faults) else pytest.skip)("; ".join(faults))
    benchmark.group = case.name
    benchmark.extra_info["rows"] = [dataclasses.asdict(row) for row in rows]
    (entrant,) = entrants.enter(case, [contender], DEVICE)
    # The host's time of a call whose launches find an empty queue; on a CPU that is all of it.
    idle = torch.cuda.synchronize if DEVICE.type == "cuda" else None
    benchmark.pedantic(entrant.call, setup=idle, rounds=ROUNDS, warmup_rounds=timing.WARM_UP)
