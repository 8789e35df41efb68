"""The report and its figures, from rows of a device that does not exist."""

import dataclasses
import os

import matplotlib.image
import pytest

from tests.benchmarks.bench_rows import FAKE_CPU, FAKE_GPU, fake_rows
from vae_fast.benchmarks import charts, report, results, traffic_table
from vae_fast.benchmarks.traffic_table import Row as TrafficRow

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="speed is that of compiled code")

FIGURES = ["bandwidth.png", "host.png", "memory.png", "speedup.png", "steps.png"]
OPS = ("sample_kl", "bernoulli", "step_mlp")


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of a report's time."""
    monkeypatch.setattr(charts, "draw", lambda rows, folder: [])


def changed(rows, condition, **values):
    return [dataclasses.replace(row, **values) if condition(row) else row for row in rows]


def written(rows, folder):
    folder.mkdir(exist_ok=True)
    return report.write(rows, folder, traffic=False).read_text()


def section(text, title):
    return text.partition(f"## {title}")[2].partition("\n## ")[0]


@pytest.mark.usefixtures("no_figures")
def test_a_report_of_a_gpu(tmp_path):
    text = written(fake_rows(ops=OPS), tmp_path)
    assert text.startswith("# vae_fast on Fake GPU 9000\n\n2000-01-01 00:00 UTC; torch 2, triton 3, vae_fast 0, ")
    assert "A copy within the device: 1,000.0 GB/s" in text
    assert "CPU figures" not in text
    assert "quick form" not in text
    assert "| sample_kl | 1.25x to 3.99x | 0.75x to 1.50x | 90% | 25% |" in section(text, "In ten seconds")
    assert "| step_mlp graph | 1.40x | 0.79x |  | 25% |" in text
    assert "sleeping GPU" in section(text, "How it was measured")
    assert "| bernoulli/128x784/float32 | MNIST in the batch" in section(text, "The cases")


@pytest.mark.usefixtures("no_figures")
def test_losses_are_shown_as_openly(tmp_path):
    text = written(fake_rows(ops=OPS), tmp_path)
    top = section(text, "In ten seconds")
    assert "**Slower by more than 5% in 10 of 56 comparisons.**" in top
    assert "- sample_kl: slower than compile in 4 of 11, at worst 1.33 times as slow (sample_kl/1x32/float32)" in top
    cases = section(text, "Every case")
    assert "| bernoulli/1x32/float32 | 0.05 | 0.03 | 0.04 | 1.71e-06 | 6.4e-07 | 4.27e-07 | 1.25 | **0.75** |" in cases
    assert "| 90% | 25% | 4.0 |" in cases
    assert cases.count("**") == 2 * 10


@pytest.mark.usefixtures("no_figures")
def test_no_loss_says_so(tmp_path):
    rows = changed(fake_rows(ops=OPS), lambda row: True, over_compile=1.2, over_eager=0.96)
    assert "**Slower by more than 5% in 0 of " in written(rows, tmp_path)


@pytest.mark.usefixtures("no_figures")
def test_overheads(tmp_path):
    overheads = section(written(fake_rows(ops=OPS), tmp_path), "Overhead")
    assert "| bernoulli | 50 | 30 | 40 | 20 | 7 | 5 |" in overheads
    assert "| step_mlp graph | 50 | 30 | 40 | 1 | 1 | 1 |" in overheads


@pytest.mark.usefixtures("no_figures")
def test_a_report_of_a_cpu_says_that_it_is_one(tmp_path):
    rows = fake_rows(FAKE_CPU, OPS, threads=(1, 2))
    text = written(changed(rows, lambda row: True, load=0.2, quick=True), tmp_path)
    assert "**These are CPU figures.**" in text
    assert "Measured in the quick form" in text
    assert "busy" not in text
    assert "1,000.0 GB/s on 1 thread, 1,000.0 GB/s on 2 threads" in text
    assert "| bernoulli/1x32/float32 | 1 | 0.05 | 0.03 | 0.04 | 1.25 | **0.75** | 1.25 | 90% | 25% | 4.0 |" in text
    assert "## Overhead" not in text
    busy = written(changed(rows, lambda row: True, load=3.5), tmp_path)
    assert "**The machine was busy (load 3.5): times on all threads mean little.**" in busy


@pytest.mark.usefixtures("no_figures")
def test_what_has_no_figures_is_listed(tmp_path):
    rows = fake_rows(ops=OPS)
    rows = changed(rows, lambda r: r.case == rows[0].case and r.contender == "compile", status="wrong: off", time=None)
    rows.append(
        dataclasses.replace(rows[0], case="mse/2048x512x512/float32", contender="", status="skipped: too large")
    )
    text = written(rows, tmp_path)
    assert "- sample_kl/1x32/float32, compile: wrong: off\n- mse/2048x512x512/float32: skipped: too large" in text


@pytest.mark.usefixtures("no_figures")
def test_losses_of_one_direction_are_shown_too(tmp_path):
    rows = [row for row in fake_rows(ops=OPS) if row.op == "sample_kl"]
    for phase, values in (("forward", {"over_eager": 0.5}), ("backward", {"device_over_compile": 0.25})):
        half = [dataclasses.replace(row, phase=phase, over_eager=None, over_compile=None) for row in rows[:4]]
        rows = [*rows, *changed(half, lambda row: row.contender == "vae_fast", **values)]
    top = section(written(rows, tmp_path), "In ten seconds")
    assert "**Slower, forward alone, by more than 5% in 1 of 1 comparisons.**" in top
    assert "- sample_kl: slower than eager in 1 of 1, at worst 2.00 times as slow (sample_kl/1x32/float32)" in top
    assert "**Slower on the device, backward alone, by more than 5% in 1 of 1 comparisons.**" in top


@pytest.mark.usefixtures("no_figures")
def test_notes_are_shown(tmp_path):
    rows = fake_rows(ops=OPS)
    said = changed(rows, lambda row: row.op == "bernoulli" and row.contender == "eager", note="from a log. ")
    count = sum(bool(row.note) for row in said)
    assert f"**Notes:**\n\n- bernoulli, {count} of all {len(rows)} results: from a log.\n" in written(said, tmp_path)
    assert "Notes" not in written(rows, tmp_path)


@pytest.mark.usefixtures("no_figures")
def test_rows_of_several_runs(tmp_path):
    later = {"commit": "later", "date": "2001-01-01 00:00 UTC", "copy_bandwidth": 2e12}
    text = written(changed(fake_rows(ops=OPS), lambda row: row.op == "step_mlp", **later), tmp_path)
    assert "A copy within the device: 1,000.0 to 2,000.0 GB/s" in text
    assert "2000-01-01 00:00 UTC to 2001-01-01 00:00 UTC" in text
    assert "commit fake and later" in text


def of_device(**ratios):
    return changed(fake_rows(ops=OPS), lambda row: row.contender == "vae_fast", **ratios)


@pytest.mark.usefixtures("no_figures")
def test_the_times_of_the_device_are_compared_apart(tmp_path):
    text = written(of_device(device_over_eager=4.0, device_over_compile=0.5), tmp_path)
    top = section(text, "In ten seconds")
    assert "| op | x eager on device | x compile on device | x eager | x compile |" in top
    assert "| sample_kl | 4.00x | 0.50x | 1.25x to 3.99x | 0.75x to 1.50x |" in top
    assert "**Slower on the device by more than 5% in 27 of 54 comparisons.**" in top
    assert "- sample_kl: slower than compile on device in 11 of 11, at worst 2.00 times as slow" in top
    cases = section(text, "Every case")
    assert "| vae_fast | eager device ms | compile device ms | vae_fast device ms | x eager on device |" in cases
    assert "| 1.71e-06 | 6.4e-07 | 4.27e-07 | 4.00 | **0.50** | 1.25 | **0.75** |" in cases
    assert "of copy: share of a copy's bandwidth, on the floor's bytes by device ms" in cases
    assert "blank of a contender that waits for the device itself" in section(text, "How it was measured")


def test_the_speed_up_on_the_device_has_a_figure(tmp_path):
    names = {path.name for path in charts.draw(of_device(device_over_eager=4.0), tmp_path)}
    assert names == {*FIGURES, "device.png"}
    assert "![Speed-up over eager and torch.compile on the device" in written(
        of_device(device_over_eager=4.0), tmp_path
    )


def test_nothing_but_skipped_cases(tmp_path):
    row = dataclasses.replace(fake_rows(ops=OPS)[0], contender="", status="skipped: too large", copy_bandwidth=None)
    text = written([row], tmp_path)
    assert "skipped: too large" in text
    assert "A copy within the device: not measured" in text
    assert "*.*" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


TRAFFIC = [
    TrafficRow("sample_kl", "", "float32", "rows", 2, 100, 200, 300, ()),
    TrafficRow("sample_kl", "prior", "float32", "chunk", 2, 100, 230, 300, ("forward: 3 addresses stored twice",)),
]


@pytest.mark.usefixtures("no_figures")
def test_traffic(tmp_path, monkeypatch):
    monkeypatch.setattr(traffic_table, "traffic_table", lambda: TRAFFIC)
    text = section(report.write(fake_rows(ops=OPS), tmp_path).read_text(), "Traffic")
    assert "| sample_kl | 2 | 1.000 | 1.100 | prior, float32, chunk |" in text
    assert "- sample_kl, prior, float32, chunk: forward: 3 addresses stored twice" in text
    monkeypatch.setattr(traffic_table, "traffic_table", lambda: TRAFFIC[:1])
    assert report.NO_PROBLEMS in report.write(fake_rows(ops=OPS), tmp_path).read_text()


@pytest.mark.usefixtures("no_figures")
def test_traffic_that_cannot_be_counted(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("pip install triton")

    monkeypatch.setattr(traffic_table, "traffic_table", fail)
    assert "Not counted: pip install triton" in report.write(fake_rows(ops=OPS), tmp_path).read_text()
    assert report.TRAFFIC_COMMAND in written(fake_rows(ops=OPS), tmp_path / "other")


@pytest.mark.usefixtures("no_figures")
def test_traffic_of_an_earlier_report_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(traffic_table, "traffic_table", lambda: TRAFFIC)
    first = report.write(fake_rows(ops=OPS), tmp_path).read_text()
    assert "| sample_kl | 2 | 1.000 | 1.100 |" in written(fake_rows(ops=OPS), tmp_path)
    assert written(fake_rows(ops=OPS), tmp_path) == first


@pytest.mark.usefixtures("no_figures")
def test_traffic_of_no_known_commit_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(traffic_table, "traffic_table", lambda: TRAFFIC)
    first = report.write(fake_rows(ops=OPS), tmp_path)
    first.write_text(first.read_text().replace(report.COUNTED_AT, "Counted once"))
    text = section(written(fake_rows(ops=OPS), tmp_path), "Traffic")
    assert text.strip() == report.TRAFFIC_COMMAND


@pytest.mark.parametrize(("machine", "threads"), [(FAKE_GPU, (None,)), (FAKE_CPU, (1, 2))])
def test_figures_are_drawn_and_not_blank(tmp_path, machine, threads):
    rows = fake_rows(machine, ops=(*OPS, "gaussian", "categorical"), threads=threads)
    drawn = charts.draw(rows, tmp_path)
    assert sorted(path.name for path in drawn) == FIGURES
    for path in drawn:
        image = matplotlib.image.imread(path)
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.05
    text = written(rows, tmp_path)
    assert all(f"({name})" in text for name in FIGURES)


def test_a_figure_without_figures_goes(tmp_path):
    charts.draw(fake_rows(ops=OPS), tmp_path)
    drawn = charts.draw([row for row in fake_rows(ops=OPS) if row.phase == "step"], tmp_path)
    assert [path.name for path in drawn] == ["steps.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["steps.png"]
    for other in ({"phase": "forward"}, {"status": "wrong: z"}):
        assert charts.draw(changed(fake_rows(ops=OPS), lambda row: True, **other), tmp_path) == []


def test_a_figure_has_the_rows_and_the_points_that_it_names(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(charts, "_bars", lambda rows, path, *_: shown.update({path.stem: {row.op for row in rows}}))
    monkeypatch.setattr(charts, "_panels", lambda lines, path, *_: shown.update({path.stem: lines["bernoulli"]}))
    charts.draw(of_device(over_eager=2.0, device_over_eager=4.0, share=0.5), tmp_path)
    for name, of, y in (("speedup", "eager", 2.0), ("device", "eager", 4.0), ("bandwidth", "vae_fast", 0.5)):
        sizes = [row.elements for row in fake_rows(ops=["bernoulli"]) if (row.contender, row.dtype) == (of, "float32")]
        assert shown[name][charts.Line(of, "float32", None)] == [(size, y) for size in sizes]
    assert shown["steps"] == {"step_mlp"}
    assert shown["memory"] == shown["host"] == {"sample_kl", "bernoulli"}


def test_bars_are_of_one_case_whatever_its_dtype():
    """A figure that took float32 alone showed the host's time of one op at the largest size, of others at the least."""
    rows = [row for row in fake_rows(ops=OPS) if row.phase != "step"]
    rows = [row for row in rows if not (row.op == "bernoulli" and row.precision == "float32" and row.elements < 2**20)]
    smallest = charts._of_one_case(rows, lambda row: (row.elements, row.precision != "float32"))
    assert {row.case for row in smallest} == {"sample_kl/1x32/float32", "bernoulli/128x784/bfloat16"}
    assert [charts._case(row) for row in smallest if row.contender == "eager"] == [
        "sample\nkl\n1x32", "bernoulli\n128x784\nbfloat16"
    ]  # fmt: skip


def test_bars_are_of_all_threads_and_in_the_unit_that_they_say(monkeypatch):
    shown = {}
    monkeypatch.setattr(charts, "_bars", lambda rows, path, title, unit, value, *_: shown.update({path: (rows, value)}))
    row = dataclasses.replace(
        fake_rows(ops=["kl"])[0], dtype="bfloat16", elements=100, peak_bytes=600, host_time=0.002, time=0.5
    )
    charts.memory([row], "memory")
    charts.host([row], "host")
    assert shown["memory"][1](row) == 3.0  # tensors of 200 bytes
    assert shown["host"][1](row) == 2.0  # microseconds
    charts.host(fake_rows(FAKE_CPU, ["kl"], threads=(1, 2)), "host")
    assert {row.threads for row in shown["host"][0]} == {2}


def test_the_command_writes_a_report_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(traffic_table, "traffic_table", lambda: TRAFFIC)
    results.Results(tmp_path, FAKE_GPU["device"]).put(fake_rows(ops=OPS))
    report.main([str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'report.md'}\n"
    assert (tmp_path / "steps.png").exists()
    for arguments, message in (([], "folder"), ([str(tmp_path / "nowhere")], "No such file")):
        with pytest.raises(SystemExit):
            report.main(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("contenders", [("eager", "vae_fast"), ("vae_fast",)])
def test_figures_of_few_contenders(tmp_path, contenders):
    rows = [row for row in fake_rows(ops=OPS) if row.contender in contenders]
    if "eager" not in contenders:
        rows = changed(rows, lambda row: True, over_eager=None, over_compile=None)
    names = sorted(path.name for path in charts.draw(rows, tmp_path))
    assert names == (FIGURES if "eager" in contenders else [name for name in FIGURES if name != "speedup.png"])


@pytest.mark.usefixtures("no_figures")
def test_words_stand_on_the_left(tmp_path):
    text = written(fake_rows(ops=OPS), tmp_path)
    assert "| case | why this one |\n| --- | --- |\n" in text
    assert "| op | x eager | x compile | of copy bandwidth | memory |\n| --- | --: | --: | --: | --: |" in text
