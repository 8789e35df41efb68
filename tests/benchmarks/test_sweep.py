"""The sweep that justifies the sizes in kernels/tiling.py."""

import pytest

pytest.importorskip("triton")

from vae_fast.benchmarks import sweep
from vae_fast.kernels import tiling


def test_our_choice_is_among_those_swept_and_none_has_too_many_warps():
    assert sweep.OURS in sweep.CHOICES
    assert {choice.elements for choice in sweep.CHOICES} == {4, 8, 16, 32}
    assert all(choice.tile // (32 * choice.elements) <= sweep.MOST_WARPS for choice in sweep.CHOICES)
    assert {w.op for w in sweep.chosen_workloads()} == set(sweep.OPS)
    assert {w.op for w in sweep.chosen_workloads("sample_kl")} == {"sample_kl"}


def test_a_choice_is_used_by_the_launchers_and_given_back():
    joint, _ = tiling.view([sweep.torch.empty(16, 1024)], by_sample=False)
    before = tiling.tiles(joint)
    with sweep.Choice(8, 1024).used():
        assert tiling.tiles(joint).columns == 1024
        assert tiling.tiles(joint).warps(joint) == 4
    assert tiling.tiles(joint) == before


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "warps"),
    [
        (32, 128, 0, 64),  # all of them
        (80, 128, 64, 24),  # 6 programs of 4 warps
        (33, 128, 0, 48),  # given out by eights: 40
        (255, 256, 0, 8),
        (16, 32, 0, 32),  # no more than 32 programs
        (32, 128, 100 * 1024, 8),  # two by their shared memory
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


@pytest.mark.cuda_only
def test_the_table_by_time(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "CHOICES", [sweep.OURS])
    monkeypatch.setattr(sweep, "GPU_SHAPE", (1024, 1024))
    sweep.main(["--op", "sample_kl"])
    _, *lines, _ = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(sweep.chosen_workloads("sample_kl"))
    assert all(float(line.split()[-1]) > 0 for line in lines)


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
