"""`fit`: train a VAE on a tensor of samples."""

import logging
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from vae_fast import checks, seeds, validation
from vae_fast.extras import import_extra
from vae_fast.likelihoods import LikelihoodLike, lookup
from vae_fast.models import VAE

# Adam's first step is ten times as long, and must be a float32.
LARGEST_LEARNING_RATE = 1e37


def fit(
    model: VAE,
    data: Tensor,
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    test_data: Tensor | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` with Adam, through Lightning.

    Args:
        model: trained in place; it comes back on the device on which it was, each module in the mode it was in.
        data: [N, ...], floating point, N >= 1, of values that the model's likelihood scores: in [0, 1], whole numbers
            >= 0, or finite ones. That of classes scores none.
        epochs: passes over `data`.
        batch_size: samples a step; the last step of an epoch takes what is left.
        learning_rate: Adam's, up to 1e37.
        test_data: measured after each epoch, always with the same noise.
        seed: of the shuffling and of the noise in training. PyTorch's own generators are left as they were.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:<index>".
        progress: show a bar, and print a line for each epoch.

    Returns:
        One dict an epoch: "epoch" (from 1), "train_negative_elbo", "train_reconstruction", "train_kl" (means over the
        epoch, in nats per sample), the same three with "test_" if there is `test_data`, and "samples_per_second" (of
        training alone). The negative ELBO is reconstruction + KL, whatever the model's beta.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        ImportError: Lightning, of the extra `app`, is not installed: `pip install -e ".[app]"`.
        KeyboardInterrupt: as it came; the model keeps what it has learnt.
    """
    if not isinstance(model, VAE):
        raise TypeError(f"model is {type(model).__name__}: expected a vae_fast.VAE")
    check_data("data", data, model.likelihood)
    if test_data is not None:
        check_data("test_data", test_data, model.likelihood)
    epochs, batch_size = checks.count("epochs", epochs), checks.count("batch_size", batch_size)
    learning_rate = check_learning_rate(learning_rate)
    seed = seeds.check_int(seed)
    target = resolve_device(device)
    module = import_extra("vae_fast.app.lightning_module")
    home = next(model.parameters()).device

    show = import_extra("vae_fast.app.progress").EpochProgress(epochs, test_data is not None) if progress else None
    shuffle = torch.Generator().manual_seed(seed)
    loader = module.TensorLoader(_place(data, target), batch_size, shuffle)
    test = None if test_data is None else module.TensorLoader(_place(test_data, target), batch_size)
    training = module.VAETraining(model, test, learning_rate, show or _ignore)
    # Lightning makes the GPU that it trains on the current one, and leaves it so.
    current = torch.cuda.device(target) if target.type == "cuda" else nullcontext()
    try:
        with current, _own_random_state(seed, target), _quiet(), show or nullcontext(), _interruptible():
            _trainer(epochs, target).fit(training, loader)
    finally:
        model.zero_grad()
        model.to(home)
    return training.history


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays a KeyboardInterrupt: Lightning makes an exit of it, and ignores the next one."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    finally:
        # None: whoever embeds Python has a handler of its own, which Python can neither see nor set.
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def check_data(name: str, data: Tensor, likelihood: LikelihoodLike) -> None:
    """Raise unless `data` is a tensor of samples that `likelihood` can score."""
    checks.is_tensor(name, data)
    if not data.is_floating_point():
        raise TypeError(f"{name} is {checks.dtype_name(data.dtype)}: expected a floating point tensor")
    checks.no_grad(name, data)
    if data.dim() < 2 or data.numel() == 0:
        raise ValueError(f"{name} has shape {list(data.shape)}: expected [N, ...] with 1 sample or more")
    domain = lookup(likelihood).domain
    if domain == "classes":
        dtype = checks.dtype_name(data.dtype)
        raise ValueError(f"{name} is {dtype}: likelihood {likelihood!r} wants class indices, which are not trained on")
    validation.require(name, data, validation.TARGETS[domain], whose=f", for likelihood {likelihood!r}")


def check_learning_rate(value: float) -> float:
    """The number, once it is known to be one that Adam takes."""
    made = checks.positive("learning_rate", value)
    if made > LARGEST_LEARNING_RATE:
        raise ValueError(f"learning_rate is {value}: expected {LARGEST_LEARNING_RATE:.0e} or less")
    return made


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA if there is one, and otherwise the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(name, str):
        raise TypeError(f"device is {type(name).__name__}: expected a str")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise ValueError(f"device is {name!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:<index>'")
    if name == "cpu":
        return torch.device("cpu")
    index, count = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        expected = f"an index below {count}" if count else "'auto' or 'cpu'"
        raise ValueError(f"device is {name!r}: PyTorch finds {count} CUDA devices here, expected {expected}")
    return torch.device("cuda", index)


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits until `device`, which need not be the current GPU, has done all that was asked of it."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def _place(data: Tensor, device: torch.device) -> Tensor:
    """`data` on `device`, where it takes less than half of what is free; elsewhere Lightning moves each batch."""
    if device.type == "cuda" and 2 * data.nbytes > torch.cuda.mem_get_info(device)[0]:
        return data
    return data.to(device)


def _trainer(epochs: int, device: torch.device):
    """A Lightning Trainer that writes no files and shows nothing of its own."""
    return import_extra("lightning.pytorch").Trainer(
        max_epochs=epochs,
        accelerator=device.type,
        devices=1 if device.type == "cpu" else [device.index],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def _own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """The CPU's generator and the device's start from `seed`, and are as they were afterwards; no other is touched."""
    devices = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in devices)):
            generator.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes on hardware it found and loggers it could use; errors and our own warnings stay."""
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _ignore(row: dict[str, float]) -> None:
    pass
