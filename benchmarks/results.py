"""Rows of results, and the folder that keeps them as JSON and CSV."""

import csv
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from vae_fast.files import atomic_path, writable_folder

FORMAT = "vae_fast.benchmarks"
OK = "ok"
# The fields that compare a row with another contender; of the device's time alone, they begin with "device_".
OVER = {"eager": "over_eager", "compile": "over_compile", "compile max-autotune": "over_compile_max_autotune"}


@dataclass
class Row:
    """One contender in one phase of one case. Times are in milliseconds; None is what was not, or cannot be, measured.

    case, op, shape, elements (of one tensor), dtype, target_dtype, phase: what was measured. threads: on a CPU.
    contender, captured: who, and whether as a CUDA graph. status: "ok", or why there are no figures.
    error: of the results against float64, over the largest value, over all phases.
    time: one call after the other, the median of `rounds`, with its 20th and 80th percentiles and its minimum.
    device: on a GPU, the time of queued calls; host: what a call costs the host.
    over_*: the time of that contender over this one's, captured ones with captured ones: the median over the rounds.
    device_over_*: the same of the device's time alone.
    peak_bytes: memory over the inputs. launches: on a GPU. passes, moved_bytes: of PyTorch's own ops, see `counting`.
    note: what could not be counted.
    floor_bytes: the fewest bytes. bandwidth: floor over device time, on a CPU over time, in bytes/s; share: of the
    run's `copy_bandwidth`.
    quick: measured in little time. load: processes that wanted a core when the run began; more than there are cores
    make times on all threads worthless. The rest: when, where and with which software.
    """

    case: str
    op: str
    shape: str
    elements: int
    dtype: str
    target_dtype: str
    phase: str
    contender: str
    captured: bool
    status: str = OK
    threads: int | None = None
    error: float | None = None
    time: float | None = None
    time_p20: float | None = None
    time_p80: float | None = None
    time_min: float | None = None
    rounds: int | None = None
    device_time: float | None = None
    device_p20: float | None = None
    device_p80: float | None = None
    host_time: float | None = None
    host_p20: float | None = None
    host_p80: float | None = None
    over_eager: float | None = None
    over_compile: float | None = None
    over_compile_max_autotune: float | None = None
    device_over_eager: float | None = None
    device_over_compile: float | None = None
    device_over_compile_max_autotune: float | None = None
    peak_bytes: int | None = None
    launches: int | None = None
    passes: int | None = None
    moved_bytes: int | None = None
    floor_bytes: int | None = None
    bandwidth: float | None = None
    copy_bandwidth: float | None = None
    share: float | None = None
    note: str = ""
    quick: bool = False
    date: str = ""
    device: str = ""
    kind: str = ""
    driver: str = ""
    cuda: str = ""
    python: str = ""
    torch: str = ""
    triton: str = ""
    vae_fast: str = ""
    commit: str = ""
    load: float | None = None

    @property
    def precision(self) -> str:
        """The dtypes of what the network gives and of the target: one where both are equal, or the target indices."""
        return "+".join(dict.fromkeys(name for name in (self.dtype, self.target_dtype) if "int" not in name))

    @property
    def on_threads(self) -> str:
        """ ", 2 threads"; nothing on a GPU."""
        return "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads > 1)}"


FIELDS = [field.name for field in fields(Row)]


class Results:
    """The rows in a folder. A case that is measured again takes the place of its old rows; the others stay.

    So do the figures of one that is skipped this time, for want of a package or of memory.
    """

    JSON, CSV = "results.json", "results.csv"

    def __init__(self, folder: Path, device: str):
        self.folder, self.device = writable_folder(folder, "the folder"), device
        self.rows = self._written()
        self.own: list[Row] = []  # of this run

    def _written(self) -> list[Row]:
        rows = load(self.folder / self.JSON) if (self.folder / self.JSON).exists() else []
        for row in rows:
            if row.device != self.device:
                raise ValueError(
                    f"{self.folder} holds results of {row.device}: expected a folder for those of {self.device}"
                )
        return rows

    def put(self, rows: list[Row]) -> None:
        """Write the rows of a case to both files, which are replaced in one piece, or neither is."""
        written = self._written()  # another run may have put some there since
        if all(row.status.startswith("skipped") for row in rows):
            have = {row.case for row in written if row.status == OK}
            rows = [row for row in rows if row.case not in have]
        # With the digits that are written: a report of these rows and one of the file are the same.
        self.own = _replaced(self.own, [Row(**_short(row)) for row in rows])
        self.rows = _replaced(written, self.own)
        with atomic_path(self.folder / self.JSON) as for_json, atomic_path(self.folder / self.CSV) as for_csv:
            lines = ",\n".join(json.dumps(asdict(row)) for row in self.rows)
            for_json.write_text(f'{{"format": "{FORMAT}", "rows": [\n{lines}\n]}}\n', encoding="utf-8")
            with for_csv.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(map(asdict, self.rows))


def load(path: Path) -> list[Row]:
    """Rows from the JSON file of `Results`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise KeyError("format")
        return [Row(**row) for row in content["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold results of this release: expected what a benchmark wrote") from error


def _replaced(rows: list[Row], new: list[Row]) -> list[Row]:
    """The new rows, behind those of other cases."""
    measured = {row.case for row in new}
    return [row for row in rows if row.case not in measured] + new


def _short(row: Row) -> dict:
    """The fields of a row, floats with the digits that mean something."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in asdict(row).items()}
