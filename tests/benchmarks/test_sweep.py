"""The sweep that justifies the sizes in kernels/tiling.py."""

from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

import torch

from vae_fast.benchmarks import audit as tool
from vae_fast.benchmarks import sweep
from vae_fast.benchmarks.audit import Resources
from vae_fast.benchmarks.audit_table import tile_size
from vae_fast.benchmarks.launches import record_launches
from vae_fast.kernels import launching, tiling


def test_our_choice_is_among_those_swept_and_none_has_too_many_warps():
    assert sweep.OURS in sweep.CHOICES
    assert {choice.elements for choice in sweep.CHOICES} == {4, 8, 16, 32}
    assert max(choice.tile // (32 * choice.elements) for choice in sweep.CHOICES) == sweep.MOST_WARPS
    assert {w.op for w in sweep.chosen_workloads()} == set(sweep.OPS)
    assert {w.op for w in sweep.chosen_workloads("sample_kl")} == {"sample_kl"}


def test_categorical_has_tiles_of_its_own():
    assert not any("categorical" in w.options for w in sweep.chosen_workloads())


def test_a_choice_is_used_by_the_launchers_and_given_back():
    joint, _ = tiling.view([torch.empty(16, 1024)], by_sample=False)
    before = tiling.tiles(joint)
    with sweep.Choice(8, 1024).used():
        assert tiling.tiles(joint).columns == 1024
        assert tiling.tiles(joint).warps(joint) == 4
        assert launching._plans_anew  # a launch that was played would have the tiles of the choice before
    assert tiling.tiles(joint) == before


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "warps"),
    [
        (32, 128, 0, 64),  # all of them
        (80, 128, 64, 24),  # 6 programs of 4 warps
        (33, 128, 0, 48),  # given out by eights: 40
        (255, 256, 0, 8),
        (16, 32, 0, 32),  # no more than 32 programs
        (32, 128, 37 * 1024, 20),  # five by their shared memory, of which each has 1 KB more than it asks for
    ],
)
def test_warps_that_fit(registers, threads, shared, warps):
    assert sweep.resident_warps(registers, threads, shared) == warps


@pytest.mark.compiled_only
def test_the_table_from_machine_code(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "CHOICES", [sweep.Choice(4, 4096), sweep.OURS])
    monkeypatch.setattr(sweep, "DTYPES", ("float32",))
    sweep.main(["--op", "sample_kl", "--target", "sm_90"])
    header, *lines, _ = capsys.readouterr().out.splitlines()
    assert header.split()[-6:] == ["special", "registers", "spilled", "warps", "KB", "loading"]
    few, _, ours, _ = lines
    assert ours.startswith("*")
    assert float(few.split()[-6]) > float(ours.split()[-6])  # fewer elements a thread, more instructions for each


@pytest.mark.compiled_only
def test_the_figures_of_the_large_kernels(monkeypatch):
    """Those of the first launch of each, in the order of the calls: the gradients alone are one of the same kernel."""
    told = []

    def audit(launch, target, elements):
        told.append((target, elements == tile_size(launch), launch.arguments.get("partials") is not None))
        return SimpleNamespace(
            issued=12.34, special=0.5, integer=3.0, threads=128, shared=63 * 1024,
            resources=Resources(registers=80, spilled=4, local=8), loads=Counter({128: 2, 16: 5}),
        )  # fmt: skip

    monkeypatch.setattr(tool, "audit", audit)
    monkeypatch.setattr(sweep, "CHOICES", [sweep.OURS])
    chosen = {w.options: w for w in sweep.chosen_workloads() if w.dtype == "float32"}
    # Last: three programs of 4 warps, and 2 x 16 bytes of each of their lanes.
    figures = ("12.3", "0.50", "80", "4", "12", "12")
    for options, kernels in (("sample", ("forward", "backward")), ("mse, batchmean", ("reconstruct",))):
        found = list(sweep.compiled(chosen[options], "sm_80"))
        assert found == [(sweep.OURS, (kernel, *figures)) for kernel in kernels]
    assert {each[:2] for each in told} == {("sm_80", True)}
    assert told[-1][-1]  # of the loss itself


@pytest.mark.parametrize(
    ("on_gpu", "target", "wanted"),
    [(False, None, "sm_90"), (False, "sm_100", "sm_100"), (True, None, "by time"), (True, "sm_80", "sm_80")],
)
def test_by_time_only_on_a_gpu_and_without_a_target(on_gpu, target, wanted, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(sweep, "timed", lambda workload: [(sweep.OURS, ("by time",))])
    monkeypatch.setattr(sweep, "compiled", lambda workload, target: [(sweep.OURS, (target,))])
    sweep.sweep("sample_kl", target)
    header, *lines, _ = capsys.readouterr().out.splitlines()
    assert all(line.endswith(wanted) for line in lines)
    assert header.endswith("p80 ms" if wanted == "by time" else "KB loading")


@pytest.fixture
def play(monkeypatch):
    """Times on the CPU, with a timer in place of the GPU's that notes the tile of each launch in place of making it."""

    def start(sample):
        tiles = []

        class PlayedTimer:
            def __init__(self, work, rotation, most):
                self.work = work

            def __call__(self):
                state = self.work.prepare(0)
                before = len(launches)
                self.work.run(state)
                (launch,) = launches[before:]
                assert launch.arguments["size"] == sweep.GPU_SHAPE
                tiles.append(tile_size(launch))
                return sample(len(tiles))

        monkeypatch.setattr(sweep, "DeviceTimer", PlayedTimer)
        (workload,) = [w for w in sweep.chosen_workloads("sample_kl") if w.dtype == "float32"]
        with record_launches() as launches:
            return list(sweep.timed(workload)), tiles

    for name, value in {
        "DEVICE": torch.device("cpu"),
        "GPU_SHAPE": (64, 1024),
        "ROUNDS": 2,
        "CHOICES": [sweep.Choice(16, 2048), sweep.Choice(16, 4096)],
        "cache_bytes": lambda device: 0,
    }.items():
        monkeypatch.setattr(sweep, name, value)
    monkeypatch.setattr(sweep.backend, "_check_triton", lambda tensor: None)
    return start


@pytest.mark.compiled_only
def test_choices_take_turns_at_a_workload(play):
    lines, tiles = play(lambda number: {"time": 0.0, "device": float(number)})
    assert tiles == [1024, 1024, 2048, 2048, 2048, 2048, 1024, 1024]  # tiles of several rows are half of a flat one
    small, large = sweep.CHOICES
    assert lines == [
        (small, ("forward", "2.4000", "4.5000", "6.6000")),  # turns 1 and 8
        (small, ("backward", "3.0000", "4.5000", "6.0000")),
        (large, ("forward", "3.6000", "4.5000", "5.4000")),
        (large, ("backward", "4.2000", "4.5000", "4.8000")),
    ]


@pytest.mark.compiled_only
def test_a_workload_that_waits_for_the_gpu_is_not_timed(play):
    with pytest.raises(RuntimeError, match="sample_kl, sample, float32, rows waits for the GPU itself"):
        play(lambda number: {"time": 1.0})


@pytest.mark.cuda_only
def test_the_table_by_time(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "CHOICES", [sweep.OURS])
    monkeypatch.setattr(sweep, "GPU_SHAPE", (1024, 1024))
    sweep.main(["--op", "sample_kl"])
    _, *lines, _ = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(sweep.chosen_workloads("sample_kl"))
    for line in lines:
        p20, median, p80 = map(float, line.split()[-3:])
        assert 0 < p20 <= median <= p80


@pytest.mark.parametrize("arguments", [["--op", "nothing"], ["--target", "sm_70"]])
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        sweep.main(arguments)
    assert error.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.interpreter_only
def test_the_interpreter_has_no_machine_code(capsys):
    with pytest.raises(SystemExit):
        sweep.main([])
    assert "TRITON_INTERPRET is set: the sweep compiles kernels, unset it" in capsys.readouterr().err
