"""The VAE as Lightning trains it. Imported by `fit` alone, because Lightning takes seconds to import."""

import time
from collections.abc import Callable, Iterator

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from vae_fast.models import VAE


class TensorLoader:
    """Batches of one tensor, each taken by one index operation; shuffled anew in each pass if given a generator."""

    def __init__(self, data: Tensor, batch_size: int, generator: torch.Generator | None = None):
        self.data = data
        self.batch_size = min(batch_size, len(data))  # `split` takes no int beyond 64 bits
        self.generator = generator

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.generator is None:
            yield from self.data.split(self.batch_size)
            return
        # On the generator's device, which torch.set_default_device need not have chosen.
        order = torch.randperm(len(self.data), generator=self.generator, device=self.generator.device)
        order = order.to(self.data.device)
        for index in order.split(self.batch_size):
            yield self.data[index]


class VAETraining(LightningModule):
    """Trains a VAE with Adam, and after each epoch adds a row to `history` and hands it to `report`."""

    def __init__(self, model: VAE, test: TensorLoader | None, learning_rate: float, report: Callable[[dict], None]):
        super().__init__()
        self.model = model
        self.test = test
        self.learning_rate = learning_rate
        self.report = report
        self.history: list[dict[str, float]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)

    def on_train_epoch_start(self) -> None:
        self.samples = 0
        self.sums = torch.zeros(2, device=self.device)
        self.start = time.perf_counter()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.model.loss(batch)
        # On the device, and read once an epoch: reading it here would make the host wait at each step.
        self.sums += torch.stack((loss.reconstruction.detach(), loss.kl.detach())) * len(batch)
        self.samples += len(batch)
        return loss.total

    def on_train_epoch_end(self) -> None:
        train = _named("train", (self.sums / self.samples).tolist())  # waits for the device: the time below is whole
        seconds = time.perf_counter() - self.start
        test = {} if self.test is None else _named("test", self.evaluate(self.test))
        row = {"epoch": self.current_epoch + 1, **train, **test, "samples_per_second": self.samples / seconds}
        self.history.append(row)
        self.report(row)

    @torch.no_grad()
    def evaluate(self, loader: TensorLoader) -> list[float]:
        """Reconstruction and KL over `loader`, in nats per sample.

        The noise is the same in each epoch, so that a curve moves only because the model does.
        """
        modes = {module: module.training for module in self.model.modules()}
        sums = torch.zeros(2, device=self.device)
        try:
            self.model.eval()
            for seed, batch in enumerate(loader):
                loss = self.model.loss(batch.to(self.device), seed=seed)
                sums += torch.stack((loss.reconstruction, loss.kl)) * len(batch)
        finally:  # after Ctrl-C too: who goes on to train must not do so without dropout
            for module, mode in modes.items():  # a layer that its user has frozen stays so
                module.training = mode
        return (sums / len(loader.data)).tolist()


def _named(prefix: str, values: list[float]) -> dict[str, float]:
    reconstruction, kl = values
    return {
        f"{prefix}_negative_elbo": reconstruction + kl,
        f"{prefix}_reconstruction": reconstruction,
        f"{prefix}_kl": kl,
    }
