"""Every likelihood that `make bench` measures in one table: error, traffic, instructions, and speed over eager.

python -m vae_fast.benchmarks.likelihood_table [FOLDER]    # of results, for the last column; prints Markdown

Without a FOLDER the last column is of the newest results in benchmarks/results that have every likelihood, of a GPU if
there are any.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from vae_fast import checks, reconstruction_loss, use_backend
from vae_fast.benchmarks import cases, formulas, interpreter
from vae_fast.benchmarks.results import Results, load
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.reference import likelihoods as reference

BACKENDS = {"triton": "kernel", "eager": "eager"}
SHAPE = (64, 784)
RESULTS = Path(__file__).parent / "results"
CALL = ("reconstruction_loss", "{}, batchmean", "float32", "rows")  # op, options, dtype, layout in the traffic table
NOTE = """\
- Errors, by dtype and backend: of the nll and the gradients of 64 x 784 elements against the NumPy reference, relative
  to the largest of each. The kernels run in Triton's interpreter, which cuts bfloat16 off where a GPU rounds it.
- moved: bytes that the kernels move, over the fewest, forward and backward.
- issued: instructions an element for loss and gradient on sm_90, the number that `make audit` holds the kernel to; of
  classes an element is a logit, in a long row.
- x eager: how many times as fast as PyTorch's formula, at worst and at best over all sizes and dtypes. No speed is
  given over a formula whose result is wrong. From {}.
"""


def error(name: str, dtype: torch.dtype, backend: str) -> float:
    """The largest error of the nll and of the gradients, each relative to the largest of its kind."""
    case = cases.Case(name, SHAPE, dtype, formulas.target_dtype(name, dtype), "")
    inputs = formulas.draw_inputs(case, torch.device("cpu"))
    with use_backend(backend):
        nll = reconstruction_loss(formulas.as_output(inputs.leaves), inputs.target, name, reduction="none")
        ours = nll.detach(), *torch.autograd.grad(nll.sum(), inputs.leaves)
    arrays = [t.detach().double().numpy() for t in (*inputs.leaves, inputs.target)]
    right, derivatives = getattr(reference, name)(*arrays)
    pairs = zip(ours, map(torch.from_numpy, (right, *derivatives)), strict=True)
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)


def measured() -> dict[str, dict]:
    """Errors and traffic of each likelihood, in Triton's interpreter: in a process of its own."""
    return interpreter.ask("vae_fast.benchmarks.likelihood_table", what="measuring")


def _measure_here():
    from vae_fast.benchmarks.output_workloads import reconstruction_workloads
    from vae_fast.benchmarks.traffic_table import measured as traffic

    calls = {(w.op, w.options, w.dtype, w.layout): w for w in reconstruction_workloads()}
    return {
        name: {
            "errors": [[error(name, dtype, backend) for backend in BACKENDS] for dtype in checks.FLOATS],
            "moved": traffic(calls[(CALL[0], CALL[1].format(name), *CALL[2:])]).ratio,
        }
        for name in _names()
    }


def table(folder: Path | None = None) -> str:
    """Markdown. folder: results of `make bench`; those that `newest` finds if None is given."""
    from vae_fast.benchmarks.report import markdown
    from vae_fast.kernels import categorical, likelihoods

    folder = folder or newest()
    issued = {**likelihoods.ISSUED, "categorical": categorical.ISSUED}
    rows = [] if folder is None else load(folder / Results.JSON)
    speeds = _speeds(rows)
    header = ["likelihood"]
    header += [f"{checks.dtype_name(dtype)} {room}" for dtype in checks.FLOATS for room in BACKENDS.values()]
    lines = []
    for name, row in measured().items():
        errors = [f"{value:.0e}" for pair in row["errors"] for value in pair]
        speed = speeds.get(name, "not measured")
        lines.append((name, *errors, f"{row['moved']:.3f}", f"{issued[name].both}", speed))
    where = f"`make bench` on {rows[0].device}" if rows else "`make bench`, which has no results here"
    return f"{markdown((*header, 'moved', 'issued', 'x eager'), lines)}\n\n{NOTE.format(where).rstrip()}"


def newest(results: Path = RESULTS) -> Path | None:
    """The folder of the last results that have every likelihood, of a GPU or else of a CPU; None without any."""
    found = {path.parent: load(path) for path in results.glob(f"*/{Results.JSON}")}
    whole = [folder for folder, rows in found.items() if set(_names()) <= {row.op for row in rows}]
    return max(whole, key=lambda folder: max((row.kind == "cuda", row.date) for row in found[folder]), default=None)


def _names():
    return [name for name in LIKELIHOODS if name in formulas.OPS]


def _speeds(rows):
    """By op: the least and the most ratio to eager on one thread or a GPU, or that eager is wrong."""
    found: dict[str, list[float]] = {}
    wrong = {}
    for row in rows:
        if (
            row.contender == "vae_fast"
            and row.phase == "forward+backward"
            and row.threads in (None, 1)
            and row.over_eager
        ):
            found.setdefault(row.op, []).append(row.over_eager)
        if row.contender == "eager" and row.status.startswith("wrong"):
            wrong[row.op] = "eager is wrong"
    return wrong | {name: f"{min(values):.2f} to {max(values):.2f}" for name, values in found.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        "python -m vae_fast.benchmarks.likelihood_table", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", nargs="?", type=Path, help="of results, for the last column [the newest]")
    parser.add_argument("--json", action="store_true", help="errors and traffic alone, for another program")
    chosen = parser.parse_args(arguments)
    if chosen.json:
        interpreter.patch_once()
        json.dump(_measure_here(), sys.stdout)
        return
    if chosen.folder is not None and not (chosen.folder / Results.JSON).is_file():
        parser.error(f"{chosen.folder} holds no {Results.JSON}: expected a folder that `vae-fast bench` has written")
    print("in Triton's interpreter this takes some minutes", file=sys.stderr)
    try:
        print(table(chosen.folder))
    except RuntimeError as error:  # without Triton, for one
        parser.error(str(error))


if __name__ == "__main__":
    main()
