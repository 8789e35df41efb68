"""What training shows in a terminal: one bar for the whole run, and a line for each epoch."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

HEADER = f"{'epoch':>5}  {'negative ELBO':>13}  {'reconstruction':>14}  {'KL':>8}  {'samples/s':>10}"


class EpochProgress:
    """A context manager; call it with each row of the history."""

    def __init__(self, epochs: int, tested: bool):
        self.part = "test" if tested else "train"
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(highlight=False),
        )
        self.task = self.bar.add_task("", total=epochs)

    def __enter__(self) -> "EpochProgress":
        self.bar.start()
        self.bar.console.print(f"{self.part} losses in nats per sample\n{HEADER}")
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def __call__(self, row: dict[str, float]) -> None:
        elbo, reconstruction, kl = (row[f"{self.part}_{name}"] for name in ("negative_elbo", "reconstruction", "kl"))
        line = f"{row['epoch']:5d}  {elbo:13.3f}  {reconstruction:14.3f}  {kl:8.3f}  {row['samples_per_second']:10,.0f}"
        self.bar.console.print(line)
        self.bar.advance(self.task)
