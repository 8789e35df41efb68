"""The traffic of every op against its floor, and calls with bad kernels."""

import math
import subprocess
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from tests.benchmarks import sample_kernels as kernels
from vae_fast.benchmarks import traffic_table as table
from vae_fast.benchmarks.workload import Workload
from vae_fast.benchmarks.workloads import workloads
from vae_fast.ops import backend


def workload(call):
    return next(w for w in workloads() if str(w) == call)


def of_a_kernel(kernel, **options):
    """A workload that launches one of the sample kernels on a tensor of 100."""

    def function(x):
        y = torch.empty_like(x)
        kernel[(3,)](x, y, 100, **options)
        return y

    return Workload("own", kernel.__name__, "float32", "rows", lambda: ([torch.ones(100)], []), function)


@pytest.mark.interpreter_only
@pytest.mark.parametrize("main", [w for w in workloads() if w.main], ids=str)
def test_the_main_calls_move_what_they_must(main):
    row = table.measured(main)
    assert row.problems == ()
    assert 1 <= row.ratio < 1.03
    assert row.launches >= 2


@pytest.mark.interpreter_only
@pytest.mark.parametrize(
    ("call", "ratio"),
    [
        ("reconstruction_loss, mse, batchmean, float16, rows", 5 / 3),  # the gradient is never made in forward
        ("elbo_loss, gaussian, averaged kl, every output used, float32, rows", 9 / 5),  # an upstream gradient of 2
        ("reparameterize, float32, rows", 1),  # the gradient in mu is the upstream one
        ("sample_kl, sample, only kl used, float32, rows", 1),
        ("gaussian_kl, batchmean, float32, rows", 3 / 2),  # mu and logvar are read again for the gradient
        ("reconstruction_loss, gaussian, batchmean, 1 of 2 gradients, bfloat16, rows", 1),
        ("sample_kl_packed, sample, bfloat16, chunks of channels_last", 1),
        ("reconstruction_loss, categorical, batchmean, bfloat16, 32768 classes", 3 / 2),  # read again for the gradient
    ],
)
def test_other_calls(call, ratio):
    row = table.measured(workload(call))
    assert row.problems == ()
    assert row.ratio == pytest.approx(ratio, rel=2e-3)


@pytest.mark.interpreter_only
def test_a_store_outside_its_tensor():
    row = table.measured(of_a_kernel(kernels.stores_past_the_end, BLOCK=128))
    assert len(row.problems) == 1
    assert "unmasked lanes of stores fall outside every tensor argument" in row.problems[0]
    assert math.isnan(row.ratio)


@pytest.mark.interpreter_only
def test_an_address_stored_twice_is_shown_and_fails(capsys):
    row = table.measured(of_a_kernel(kernels.programs_overlap, BLOCK=32))
    assert row.problems == ("forward: 2 addresses of programs_overlap.y stored twice",)
    assert table.show([row]) == 1
    assert "own, programs_overlap, float32, rows: forward: 2 addresses" in capsys.readouterr().out
    assert table.show([row._replace(problems=())]) == 0
    assert "no lane outside a tensor, no address stored twice" in capsys.readouterr().out


class OverlapsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        made = torch.empty_like(gradient)
        kernels.programs_overlap[(3,)](gradient, made, 100, BLOCK=32)
        return made


@pytest.mark.interpreter_only
def test_problems_of_each_direction_and_kind():
    def gaps(left):
        kernels.row_sums[(7,)](left, torch.empty(8), 16, 20, COLUMNS=16)
        return left.sum()

    names = "own", "", "float32", "rows"
    call = Workload(*names, lambda: ([torch.ones(8, 20)[:, :10]], []), gaps)
    assert table.measured(call).problems == ("forward: 42 lanes between the elements of row_sums.x.load",)
    call = Workload(*names, lambda: ([torch.ones(100, requires_grad=True)], []), OverlapsInBackward.apply)
    row = table.measured(call)
    assert (row.launches, row.problems[0]) == (1, "backward: 2 addresses of programs_overlap.y stored twice")


def test_the_floor_has_what_must_be_moved_once():
    def floor(op, *tensors, options="", used=None):
        return table.floor(SimpleNamespace(op=op, options=options, used=used), *tensors)

    a, b, c, d, e = torch.ones(5, 10, 10).unbind()  # of 400 bytes each
    one, each, row = torch.ones(()), torch.ones(10), torch.ones(10).expand(10, 10)
    assert floor("reparameterize", [a, b], [], [c], [d], [d, e]) == 6 * 400  # neither the mean nor its gradient again
    options = "SoftClamp(bound=5.0, epsilon=0.0)"
    assert floor("reparameterize", [a, b], [], [c], [d], [e, c], options=options) == 8 * 400
    prior_and_seed = [c, one]  # of which a sample's gradient wants the seed alone
    assert floor("sample_kl", [a, b], prior_and_seed, [d], [e], [e, c], used=0) == 7 * 400 + 2 * 4
    assert floor("gaussian_kl", [a, b], [], [each], [each], [c, d]) == 6 * 400 + 2 * 40
    assert floor("gaussian_kl", [a, b], [], [one], [one], [c, d]) == 4 * 400 + 2 * 4
    assert floor("reconstruction_loss", [a], [b], [c], [d], ()) == 3 * 400
    assert floor("reconstruction_loss", [a], [b], [one], [one], [c]) == 3 * 400 + 2 * 4
    assert floor("reconstruction_loss", [a], [b], [each], [each], [c]) == 5 * 400 + 2 * 40
    assert floor("reconstruction_loss", [a], [row], [one], [one], [c]) == 2 * 400 + 40 + 2 * 4


@pytest.mark.compiled_only
def test_a_process_of_its_own_interprets(monkeypatch):
    """Of its workloads, all of which the interpreter's own process takes, one an op."""
    code = (
        "from vae_fast.benchmarks import traffic_table as table\n"
        "found = {workload.op: workload for workload in table.workloads() if workload.main}\n"
        "table.workloads = lambda: found.values()\n"
        "table.main()"
    )
    run = subprocess.run

    def run_few(command, **options):
        python, *module = command[:3]
        assert module == ["-m", "vae_fast.benchmarks.traffic_table"]
        return run([python, "-c", code, *command[3:]], **options)

    monkeypatch.setattr(table.interpreter.subprocess, "run", run_few)
    rows = table.traffic_table(main=True)
    assert [row.op for row in rows] == [
        "sample_kl", "sample_kl_packed", "gaussian_kl", "reconstruction_loss", "elbo_loss"
    ]  # fmt: skip
    assert all(isinstance(row, table.Row) and row.problems == () and 1 <= row.ratio < 1.03 for row in rows)


@pytest.mark.compiled_only
def test_a_process_that_fails(monkeypatch):
    monkeypatch.setattr(table.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="counting traffic in the interpreter failed"):
        table.traffic_table()


def test_without_triton(monkeypatch):
    monkeypatch.setattr(backend, "HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="pip install triton"):
        table.traffic_table()


def test_all_calls_or_the_main_ones_alone(monkeypatch):
    few = [SimpleNamespace(main=main) for main in (True, False)]
    monkeypatch.setattr(backend, "interpreting", lambda: True)
    monkeypatch.setattr(table, "workloads", lambda: few)
    monkeypatch.setattr(table, "measured", lambda workload: workload)
    assert table.traffic_table() == few
    assert table.traffic_table(main=True) == few[:1]


@pytest.mark.parametrize(("problems", "status"), [((), 0), (("an address stored twice",), 1)])
def test_the_command_fails_where_there_is_a_problem(problems, status, monkeypatch):
    row = table.Row("mse", "", "float32", "rows", 1, 8, 8, 16, problems)
    monkeypatch.setattr(table, "traffic_table", lambda main: [row])
    with pytest.raises(SystemExit) as ended:
        table.main([])
    assert ended.value.code == status
