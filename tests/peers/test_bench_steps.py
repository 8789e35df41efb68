"""Whole training steps of other projects as `vae-fast bench` measures them: by themselves, and patched."""

import pytest
import torch

pytest.importorskip("scvi", reason="scvi-tools is not installed: make test-peers", exc_type=ModuleNotFoundError)
pytest.importorskip("diffusers", reason="diffusers is not installed: make test-peers", exc_type=ModuleNotFoundError)

from tests.peers.curves import goes_through_ours
from vae_fast.benchmarks import cases, correctness, entrants, machine, measure, peers, steps, timing
from vae_fast.benchmarks.contenders import CONTENDERS
from vae_fast.integrations import diffusers, scvi

CPU = torch.device("cpu")
TWO = {name: CONTENDERS[name] for name in ("eager", "vae_fast")}
SMALL = [
    cases.Case("step_scvi", (16, 2000), *cases.FLOAT32, "small"),
    cases.Case("step_diffusers", (2, 3, 16, 16), *cases.FLOAT32, "small"),
]
small = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.op)


@pytest.fixture(autouse=True)
def _nothing_stays_patched():
    yield
    assert not any(ours._project.is_patched for ours in (scvi, diffusers))


@small
@pytest.mark.parametrize("contender", TWO.values(), ids=TWO)
def test_right_steps_pass(case, contender):
    assert 0 < correctness.check_step(case, contender, CPU) < 1e-4


@small
def test_a_wrong_step_is_found(case, monkeypatch):
    loss = steps.STEPS[case.op].fused
    wrong = steps.Step(**{**vars(steps.STEPS[case.op]), "fused": lambda model, x: 1.001 * loss(model, x)})
    monkeypatch.setitem(steps.STEPS, case.op, wrong)
    with pytest.raises(correctness.Wrong, match=r"loss is off by 1\.0e-03"):
        correctness.check_step(case, TWO["vae_fast"], CPU)


@small
def test_one_loss_goes_through_our_ops_where_patched_and_nowhere_else(case):
    model, x = steps.build_model(case.op, CPU), steps.draw_batch(case, CPU)
    for patched in (False, True, False):
        peers.switch(case.project, patched)
        assert goes_through_ours(steps.STEPS[case.op].eager(model, x)) == patched


@small
def test_the_project_is_patched_where_ours_is_timed(case):
    project = {"scvi": scvi, "diffusers": diffusers}[case.project]._project
    made = entrants.enter(case, [*TWO.values()], CPU)
    for entrant in (*made, *made):
        entrant.works["step"].prepare(0)
        assert project.is_patched == entrant.contender.fused
    peers.switch(case.project, False)


@small
def test_rows(case):
    description = {**machine.describe(CPU), "date": "today"}
    session = measure.Session(CPU, False, timing.Effort(0.0, 3, 3), description, {1: 1e9})
    rows = measure.measure(case, session)
    assert [(row.contender, row.phase, row.status) for row in rows] == [(name, "step", "ok") for name in TWO]
    assert all(row.time > 0 for row in rows)
    assert rows[1].over_eager > 0


def test_batches_are_counts_of_their_seed_and_leave_the_generator_alone():
    import numpy as np

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (steps.draw_batch(SMALL[0], CPU, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (16, 2000)
    assert torch.equal(first, first.round().clamp(min=0))
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
