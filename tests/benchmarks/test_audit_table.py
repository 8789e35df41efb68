"""The audit of our own kernels: no failures in the main variants, and what is wrong makes the command fail."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("triton")

from tests.benchmarks import sample_kernels
from vae_fast.app import cli
from vae_fast.kernels import latent_forward, likelihoods, upstreams
from vae_fast.ops import backend

compiled = pytest.mark.compiled_only


@pytest.fixture
def table():
    from vae_fast.benchmarks import audit_table

    return audit_table


def run(*arguments):
    return CliRunner().invoke(cli.app, ["audit", *arguments])


def rows(table, call, target="sm_90", kernel=""):
    todo = [task for task in table.tasks([target], kernel) if table.recorded()[task.index].call == call]
    return list(table.audit_rows(todo))


@compiled
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_main_variants_have_no_failures(table, target):
    found = list(table.audit_rows(table.tasks([target], main=True), jobs=2))
    assert [(row.call, *row.failures) for row in found if row.failures] == []
    assert len(found) >= 50
    assert all(row.registers and row.issued and row.bytes for row in found)
    assert {row.bound for row in found} <= {"memory", "issued", "floating", "integer", "special"}


@compiled
@pytest.mark.parametrize(
    ("call", "bytes_per_element"),
    [
        ("sample_kl, sample, float32, rows: forward", 12),
        ("sample_kl, sample, bfloat16, rows: backward", 10),
        ("reconstruction_loss, mse, batchmean, float32, rows: forward", 12),
        ("reconstruction_loss, gaussian, batchmean, float32, rows: backward", 16),  # both gradients, read and written
        ("sample_kl, sample, float32, 784 columns: forward", 12),
    ],
)
def test_bytes_are_those_of_the_tensors(table, call, bytes_per_element):
    (row,) = [row for row in rows(table, call) if row.kernel != "_sum_partials"]
    assert row.bytes == bytes_per_element
    assert (row.card, row.limit is not None) == ("H200", True)


@compiled
def test_bfloat16_logits_and_bytes_are_within_what_their_5_bytes_leave_time_for(table):
    (row,) = rows(table, "reconstruction_loss, bernoulli, batchmean, uint8 target, bfloat16, rows: forward")
    assert row.bytes == 5
    assert row.issued < 39
    assert row.bound == "memory"


@compiled
def test_where_no_tile_is_full_the_path_with_masks_is_counted(table):
    (full,) = rows(table, "reconstruction_loss, bernoulli, sample, float32, rows: forward")
    (masked,) = rows(table, "reconstruction_loss, bernoulli, sample, float32, 784 columns: forward")
    assert masked.issued > full.issued + 2
    assert masked.limit == pytest.approx(full.limit * 1024 / 784)
    (entry,) = [e for e in table.recorded() if e.call == masked.call]
    assert entry.elements == 2 * 784
    assert table.tile_size(entry.launch) == 2 * 1024


@compiled
class TestBadKernels:
    """What the audit must catch; spills and local memory themselves are in test_audit.py."""

    def test_more_instructions_than_the_number_beside_the_kernel(self, table, monkeypatch):
        monkeypatch.setitem(latent_forward.ISSUED, "noise", 20)
        (row,) = rows(table, "reparameterize, float32, rows: forward")
        assert len(row.failures) == 1
        assert "_forward on sm_90: " in row.failures[0]
        limit = latent_forward.ISSUED["tensors"] + latent_forward.ISSUED["sample"] + 20
        assert limit < row.issued
        assert f"issued instructions per element, over the budget of {limit:g}" in row.failures[0]
        (elsewhere,) = rows(table, "reparameterize, float32, rows: forward", target="gfx942")
        assert elsewhere.failures == ()

    def test_a_likelihood_without_a_number(self, table, monkeypatch):
        monkeypatch.delitem(likelihoods.ISSUED, "mse")
        (row,) = rows(table, "reconstruction_loss, mse, none, float32, rows: forward")
        assert "over the budget of 0" in row.failures[0]

    def test_narrow_accesses_where_the_layout_allows_wide_ones(self, table, monkeypatch):
        call = "gaussian_kl, batchmean, float32, unaligned: backward"
        assert rows(table, call)[0].failures == ()
        monkeypatch.setattr(table, "_aligned", lambda tensor, strides: True)
        (row,) = rows(table, call)
        assert "main path has accesses narrower than 128 bits: 33 of 32; allowed: 0" in row.failures[0]

    @pytest.mark.parametrize("access", ["load", "store"])
    def test_narrow_accesses_of_one_direction_in_place(self, table, monkeypatch, access):
        """The wide ones of the other direction move as many bytes as all tensors have."""
        audit = table.audit

        def narrowed(*arguments, **options):
            report = audit(*arguments, **options)
            wide = [i for i in report.main if i.access == access and i.bits == 128]
            rest = [i for i in report.main if i not in wide]
            return replace(report, main=(*rest, *(replace(i, bits=32) for i in 4 * wide)))

        call = "reconstruction_loss, bernoulli, batchmean, float32, rows: backward"
        assert rows(table, call, kernel="scale")[0].failures == ()
        monkeypatch.setattr(table, "audit", narrowed)
        (row,) = rows(table, call, kernel="scale")
        assert "main path has accesses narrower than 128 bits" in row.failures[0]

    @pytest.mark.parametrize("access", ["load", "store"])
    @pytest.mark.parametrize("shared", ["", "a number a feature, "])
    def test_narrow_accesses_beside_a_shared_tensor(self, table, monkeypatch, access, shared):
        """Of which a tile reads a row, as narrow as it likes: that must not excuse two tensors, or a store."""
        audit = table.audit

        def narrowed(*arguments, **options):
            report = audit(*arguments, **options)
            wide = [i for i in report.main if i.access == access and i.bits == 128][: 8 if access == "load" else 4]
            rest = [i for i in report.main if i not in wide]
            return replace(report, main=(*rest, *(replace(i, bits=32) for i in 4 * wide)))

        call = f"reconstruction_loss, gaussian, batchmean, {shared}float32, rows: forward"
        assert rows(table, call, kernel="reconstruct")[0].failures == ()
        monkeypatch.setattr(table, "audit", narrowed)
        (row,) = rows(table, call, kernel="reconstruct")
        assert "main path has accesses narrower than 128 bits" in row.failures[0]

    @pytest.mark.parametrize(("access", "count", "allowed"), [("loads", 16, 16), ("stores", 15, 15), ("stores", 16, 0)])
    def test_a_whole_tensor_is_excused_where_it_is_read_and_shared_alone(self, table, access, count, allowed):
        operands = [(torch.zeros(4, 512), (512, 1)), (torch.zeros(512).expand(4, 512), (0, 1))]
        report = SimpleNamespace(threads=128, **{"loads": {}, "stores": {}, access: {32: count}})
        assert table._scalars(report, operands, 2048, 128, 0) == allowed

    @pytest.mark.parametrize(
        ("bytes_", "opcode", "fails"),
        [(8, "", False), (8, "STL", False), (8, "LDL.64", True), (8, "scratch_load_dword", True), (24, "", True)],
    )
    def test_local_memory_read_on_the_main_path_or_much_of_it(self, table, monkeypatch, bytes_, opcode, fails):
        audit = table.audit

        def spilling(*arguments, **options):
            report = audit(*arguments, **options)
            main = (*report.main, replace(report.main[0], opcode=opcode)) if opcode else report.main
            resources = replace(report.resources, spilled=4, local=bytes_)
            return replace(report, main=main, resources=resources)

        monkeypatch.setattr(table, "audit", spilling)
        (row,) = rows(table, "reparameterize, bfloat16, rows: forward")
        assert (row.spilled, row.local) == (4, bytes_)
        assert any("spills 4 bytes" in failure for failure in row.failures) == fails
        assert any(f"{bytes_} bytes of local memory" in failure for failure in row.failures) == fails

    def test_float64_and_sums_have_no_number(self, table):
        assert rows(table, "reparameterize, float64, rows: forward")[0].limit is None
        (total,) = rows(table, "elbo_loss, bernoulli, float32, rows: forward", kernel="total")
        assert (total.kernel, total.limit, total.failures) == ("_total", None, ())


@compiled
class TestWhatDoesNotCompile:
    """Its row fails, and says why in a line; the others are there."""

    @pytest.fixture
    def _broken(self, table, monkeypatch):
        """Two launches more."""
        known = table.recorded(True)
        with table.record_launches() as launches:
            for kernel in (sample_kernels.does_not_compile, sample_kernels.refuses_its_block):
                kernel[(1,)](torch.zeros(64), torch.zeros(64), BLOCK=64)
        broken = [table.Recorded(f"call {k}", launch, 64) for k, launch in enumerate(launches)]
        monkeypatch.setattr(table, "recorded", lambda main=False: [*broken, *known])

    @pytest.mark.usefixtures("_broken")
    @pytest.mark.parametrize("target", ["sm_90", "gfx942"])
    def test_the_row_says_what_was_raised(self, table, target):
        first, second = (table.row(table.Task(target, k, True)) for k in (0, 1))
        assert (first.call, first.kernel, first.target, first.compiled) == ("call 0", "does_not_compile", target, False)
        (failure,) = first.failures
        assert failure.startswith(f"does_not_compile on {target}: not compiled: ")
        assert "ValueError" in failure
        assert "Cannot make_shape_compatible: incompatible dimensions" in failure
        assert second.failures[0].endswith("CompileTimeAssertionFailure: BLOCK is 64 or more: expected fewer")

    @pytest.mark.usefixtures("_broken")
    def test_the_command_goes_on_and_fails(self, table, monkeypatch):
        found = [k for k, entry in enumerate(table.recorded()) if k < 2 or entry.launch.name == "_scale"][:3]
        monkeypatch.setattr(table, "tasks", lambda *_: [table.Task("sm_90", k, True) for k in found])
        result = run("--target", "sm_90", "--jobs", "1")
        assert result.exit_code == 1, result.output
        assert result.output.count("FAILED") == 2
        assert "FAILED call 0: does_not_compile on sm_90: not compiled: " in result.output
        assert "2 failures in 3 compilations" in result.output
        assert "128" in result.output  # the other's accesses

    def test_in_other_processes(self, table, monkeypatch, tmp_path):
        """What they raise need not survive the way back."""
        (tmp_path / "file").touch()
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
        (row,) = table.audit_rows(table.tasks(["sm_90"], "scale", main=True)[:1], jobs=2)
        assert not row.compiled
        assert "not compiled: NotADirectoryError: " in row.failures[0]


@compiled
class TestCommand:
    def test_without_failures(self):
        result = run("--main", "--target", "sm_90", "--target", "gfx942", "--kernel", "scale", "--card", "h100")
        assert result.exit_code == 0, result.output
        assert "sm_90, on a H100 SXM" in result.output
        assert "gfx942, on a MI300X" in result.output
        assert "no failures in" in result.output
        assert "FAILED" not in result.output
        header = next(line for line in result.output.splitlines() if "kernel" in line)
        assert " registers   spilled   local   loads " in header  # whole, where there is no terminal to fit into

    def test_with_failures(self, monkeypatch):
        monkeypatch.setattr(upstreams, "ISSUED_SCALE", 0.1)
        result = run("--main", "--target", "sm_90", "--kernel", "scale", "--jobs", "1")
        assert result.exit_code == 1
        assert (
            "FAILED reconstruction_loss, bernoulli, batchmean, float32, rows: backward: _scale on sm_90: "
            in result.output
        )
        assert "failures in" in result.output

    def test_every_variant_every_failure_and_each_figure_in_its_column(self, table, monkeypatch):
        few = table.tasks(["sm_90"], "scale", main=True)[:1]
        (row,) = table.audit_rows(few)
        row = row._replace(
            registers=26, spilled=4, local=8, loads="8x128", stores="4x128", issued=3.0, limit=4.5, integer=1.0,
            special=0.5, bytes=12, bound="memory", load=0.75, failures=("x[rows]", "two"),
        )  # fmt: skip
        asked = []
        monkeypatch.setattr(table, "tasks", lambda *arguments: asked.append(arguments) or few)
        monkeypatch.setattr(table, "audit_rows", lambda *_: [row])
        chosen = "--target", "sm_90", "--kernel", "scale"
        _, result = run(*chosen, "--main"), run(*chosen, "--target", "sm_90")
        assert asked == [(["sm_90"], "scale", True), (["sm_90"], "scale", False)]
        assert f"FAILED {row.call}: x[rows]\nFAILED {row.call}: two\n2 failures in 1 compilations" in result.output
        assert " 26 4 8 8x128 4x128 3.0 4.5 1.0 0.50 12 memory, 75% " in " ".join(result.output.split())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--target", "sm_70"], "'--target': 'sm_70' is none of sm_80, sm_90, sm_100, gfx942"),
            (["--card", "titan"], "'--card': 'titan' is none of h200, h100, a100, b200, mi300x"),
            (["--card", "h200", "--card", "h100"], "'--card': 'h200' and 'h100' are both for sm_90"),
            (["--target", "gfx942", "--card", "h100"], "'--card': 'h100' is for --target sm_90, which is left out"),
            (["--kernel", "nothing"], "'--kernel': 'nothing' is part of none of backward, categorical, forward"),
            (["--jobs", "0"], "'--jobs': "),
        ],
    )
    def test_bad_options(self, options, message):
        result = run("--main", *options)
        assert result.exit_code == 2
        assert message in result.output
        assert "Traceback" not in result.output


@pytest.mark.interpreter_only
def test_the_interpreter_has_no_machine_code():
    result = run()
    assert result.exit_code == 2
    assert "TRITON_INTERPRET: the audit compiles kernels: unset it" in result.output


def test_without_triton(monkeypatch):
    monkeypatch.setattr(backend, "HAS_TRITON", False)
    result = run()
    assert result.exit_code == 2
    assert "triton is not installed: pip install triton" in result.output
