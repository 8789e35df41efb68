"""Rows of a device that does not exist, with figures by a formula: what reports and figures are drawn from in tests."""

from vae_fast.benchmarks.cases import CASES
from vae_fast.benchmarks.contenders import CONTENDERS, GRAPH
from vae_fast.benchmarks.results import Row

COPY = 1e12  # bytes/s
FACTORS = {"eager": 4.0, "compile": 1.5, "compile max-autotune": 1.4, "vae_fast": 1.0}
OVERHEAD = {"eager": 0.05, "compile": 0.03, "compile max-autotune": 0.03, "vae_fast": 0.04}  # milliseconds
FAKE_GPU = {
    "device": "Fake GPU 9000", "kind": "cuda", "driver": "0.0", "cuda": "0.0", "date": "2000-01-01 00:00 UTC",
    "python": "3", "torch": "2", "triton": "3", "vae_fast": "0", "commit": "fake",
}  # fmt: skip
FAKE_CPU = {**FAKE_GPU, "device": "Fake CPU, 2 cores", "kind": "cpu", "driver": "none", "cuda": "none"}


def fake_rows(machine=FAKE_GPU, ops=None, threads=(None,)):
    """A whole call of every case of `ops` by every contender."""
    rows = []
    for case in CASES.values():
        if ops is None or case.op in ops:
            for count in threads:
                rows += _case_rows(case, machine, count)
    return rows


def _case_rows(case, machine, threads):
    rows = []
    for contender in CONTENDERS.values():
        base = contender.name.removesuffix(GRAPH)
        if contender.captured and not (case.is_step and machine["kind"] == "cuda"):
            continue
        row = Row(
            case.name, case.op, "x".join(map(str, case.shape)), case.elements, _name(case.dtype),
            _name(case.target_dtype), "step" if case.is_step else "forward+backward", contender.name,
            contender.captured, threads=threads, copy_bandwidth=COPY, **machine,
        )  # fmt: skip
        moved = case.floor.get("forward+backward", 4 * case.elements)
        milliseconds = FACTORS[base] * 1e3 * moved / (0.9 * COPY)
        row.time = milliseconds + OVERHEAD[base] * (0.2 if contender.captured else 1) / (threads or 1)
        row.time_p20, row.time_p80, row.time_min, row.rounds = 0.95 * row.time, 1.05 * row.time, 0.9 * row.time, 99
        if machine["kind"] == "cuda":
            row.device_time, row.host_time = milliseconds, OVERHEAD[base]
            row.launches = 1 if contender.captured else int(5 * FACTORS[base])
        row.peak_bytes = int(FACTORS[base] * 2 * moved)
        if not case.is_step:
            row.floor_bytes = moved
            row.moved_bytes = 4 * moved if contender.name == "eager" else None
            row.share = moved / milliseconds * 1e3 / COPY
        rows.append(row)
    times = {row.contender: row.time for row in rows}
    for row in rows:
        graph = GRAPH * row.captured
        for base, field in (("eager", "over_eager"), ("compile", "over_compile")):
            if row.contender != base + graph:
                setattr(row, field, times[base + graph] / row.time)
    return rows


def _name(dtype):
    return str(dtype).removeprefix("torch.")
