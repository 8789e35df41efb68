"""`fit`: what it learns, returns and leaves behind."""

import itertools
import logging
import os
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vae_fast
from vae_fast.app import training
from vae_fast.app.data import digits
from vae_fast.app.training import fit
from vae_fast.extras import MissingExtra, import_extra

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="training is the model's, tested there"
)

KEYS = ["negative_elbo", "reconstruction", "kl"]


def model(seed=0, **options):
    torch.manual_seed(seed)
    return vae_fast.VAE((8, 8), 4, (32,), **options)


def fast(vae, data, **options):
    return fit(vae, data, **{"epochs": 1, "progress": False, "device": "cpu", **options})


@pytest.fixture(scope="module")
def images():
    return digits()


def test_training_on_the_digits_learns(images):
    history = fast(model(), images.train, epochs=4, test_data=images.test, learning_rate=5e-3)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    names = [f"{part}_{key}" for part in ("train", "test") for key in KEYS]
    assert list(history[0]) == ["epoch", *names, "samples_per_second"]
    elbos = [row["test_negative_elbo"] for row in history]
    assert elbos == sorted(elbos, reverse=True)
    assert elbos[-1] < 29
    for row in history:
        for part in ("train", "test"):
            assert row[f"{part}_negative_elbo"] == pytest.approx(row[f"{part}_reconstruction"] + row[f"{part}_kl"])
        assert row["samples_per_second"] > 0


def test_test_losses_are_those_of_the_model(images):
    vae = model()
    history = fast(vae, images.train, test_data=images.test, batch_size=200)
    losses = [(len(x), vae.loss(x, seed=seed)) for seed, x in enumerate(images.test.split(200))]
    for name in ("reconstruction", "kl"):
        wanted = sum(count * getattr(loss, name).item() for count, loss in losses) / len(images.test)
        assert history[-1][f"test_{name}"] == pytest.approx(wanted, rel=1e-5)


def test_train_losses_weigh_each_sample_equally(images):
    """Nothing is learned at this rate: the mean over the epoch, short last batch included, is that of all samples."""
    vae = model()
    history = fast(vae, images.train[:70], batch_size=64, learning_rate=1e-30)
    kl = vae.encode(images.train[:70]).kl(reduction="batchmean").item()
    assert history[0]["train_kl"] == pytest.approx(kl, rel=1e-5)


def test_a_batch_of_more_than_there_is_is_all_of_it(images):
    """Also of more than 64 bits count, which PyTorch does not take."""
    few, kept = images.train[:70], ("train_negative_elbo", "test_negative_elbo")
    (all_of_it,), (more,) = (fast(model(), few, test_data=few, batch_size=size) for size in (70, 10**30))
    assert [more[key] for key in kept] == [all_of_it[key] for key in kept]


def test_the_negative_elbo_does_not_depend_on_beta(images):
    row = fast(model(beta=0.1), images.train[:64])[0]
    assert row["train_negative_elbo"] == pytest.approx(row["train_reconstruction"] + row["train_kl"])


def test_without_test_data_there_are_no_test_losses(images):
    assert list(fast(model(), images.train[:64])[0]) == [
        "epoch",
        *(f"train_{key}" for key in KEYS),
        "samples_per_second",
    ]


def test_the_same_seed_trains_the_same_model_and_leaves_the_generator_alone(images):
    first, second, other = model(), model(), model()
    fast(first, images.train[:200], seed=5)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    fast(second, images.train[:200], seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    fast(other, images.train[:200], seed=6)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.encoder.layers[0].weight, other.encoder.layers[0].weight)


def test_numbers_may_be_numpys(images):
    counts = {"epochs": np.int64(2), "batch_size": np.int32(20), "seed": np.int64(3)}
    assert len(fast(model(), images.train[:64], learning_rate=np.float32(1e-3), **counts)) == 2


def test_another_default_device_changes_nothing(images):
    """As torch.set_default_device("cuda") sets one: the shuffling's generator is on the CPU."""
    first, second = model(), model()
    fast(first, images.train[:64], test_data=images.test)
    with torch.device("meta"):
        fast(second, images.train[:64], test_data=images.test)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_training_on_the_cpu_leaves_the_generators_of_gpus_alone(images, monkeypatch):
    """torch.manual_seed would seed those of every device, also where nobody puts them back."""
    vae, seeded = model(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    fast(vae, images.train[:64], seed=5)
    assert not seeded


def test_each_epoch_sees_each_sample_once_in_another_order(images):
    seen = []
    vae = model()
    vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    data = torch.arange(10.0).view(10, 1, 1).expand(10, 8, 8) / 10
    fast(vae, data, epochs=2, batch_size=4)
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    first, second = (torch.cat(seen[part])[:, 0, 0] for part in (slice(3), slice(3, 6)))
    assert sorted(first.tolist()) == sorted(second.tolist()) == data[:, 0, 0].tolist()
    assert first.tolist() != second.tolist()


def test_nothing_is_written_nor_said(images, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("lightning.pytorch").level
    fast(model(), images.train[:64])
    out, err = capfd.readouterr()
    assert (out, err, [str(warning.message) for warning in recwarn]) == ("", "", [])
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("lightning.pytorch").level == level


def test_progress_prints_a_line_for_each_epoch(images, capfd):
    history = fast(model(), images.train[:64], epochs=3, test_data=images.test, progress=True)
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "test losses in nats per sample"
    assert lines[1].split() == ["epoch", "negative", "ELBO", "reconstruction", "KL", "samples/s"]
    for line, row in zip(lines[2:5], history):
        shown = [float(number.replace(",", "")) for number in line.split()]
        wanted = [row["epoch"], *(row[f"test_{key}"] for key in KEYS), row["samples_per_second"]]
        assert shown == pytest.approx(wanted, abs=1)
    assert "3/3" in lines[5]


def test_a_gaussian_model_takes_any_real_data():
    data = torch.randn(40, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    history = fast(model(likelihood="gaussian"), data, epochs=3)
    assert history[-1]["train_negative_elbo"] < history[0]["train_negative_elbo"]


def test_fit_is_exported():
    assert vae_fast.fit is fit


DATA = torch.rand(4, 8, 8)


def test_data_that_would_fill_the_gpu_stays_on_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * DATA.nbytes - 1, 0))
    assert training._place(DATA, torch.device("cuda", 0)) is DATA


def test_without_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "vae_fast.app.lightning_module", raising=False)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(MissingExtra, match=r'lightning.* is not installed: pip install -e "\.\[app\]"$'):
        fast(model(), DATA)


@pytest.mark.parametrize("test_data", [None, DATA])
def test_each_module_keeps_its_mode(test_data):
    """A layer that is frozen stays so, in training and after it."""
    vae = model()
    vae.encoder.eval()
    modes = {name: module.training for name, module in vae.named_modules()}
    fast(vae, DATA, epochs=2, test_data=test_data)
    assert {name: module.training for name, module in vae.named_modules()} == modes


@pytest.fixture
def noise():
    return torch.rand(40, 8, 8, generator=torch.Generator().manual_seed(0))


def test_beta_is_trained_with(noise):
    low, high = (fast(model(beta=b), noise, epochs=3, learning_rate=1e-2)[-1]["train_kl"] for b in (0.0, 100.0))
    assert high < low / 2


def test_dropout_is_off_in_testing(noise):
    vae = model()
    vae.encoder = torch.nn.Sequential(torch.nn.Dropout(0.5), vae.encoder)
    history = fast(vae, noise, epochs=2, test_data=noise, learning_rate=1e-30)
    assert history[0]["test_negative_elbo"] == history[1]["test_negative_elbo"]


def test_the_seed_shuffles(noise):
    orders = []
    for seed in (0, 0, 1):
        vae, seen = model(), []
        vae.encoder.register_forward_pre_hook(lambda module, x, seen=seen: seen.append(x[0][:, 0, 0]))
        fast(vae, noise, seed=seed)
        orders.append(torch.cat(seen).tolist())
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_the_rate_is_that_of_each_epoch(noise, monkeypatch):
    clock = SimpleNamespace(perf_counter=itertools.count(0, 2).__next__)
    monkeypatch.setattr(import_extra("vae_fast.app.lightning_module"), "time", clock)
    assert [row["samples_per_second"] for row in fast(model(), noise, epochs=3)] == [20.0] * 3


def test_warnings_of_ones_own_are_seen(noise):
    vae = model()
    vae.encoder.register_forward_pre_hook(lambda *_: warnings.warn("mine", stacklevel=1))
    with pytest.warns(UserWarning, match="mine"):
        fast(vae, noise)


def test_levels_of_loggers_come_back(noise):
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        fast(model(), noise)
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(before)


def test_counts_are_trained_on(noise):
    history = fast(model(likelihood="poisson"), (noise * 9).round(), epochs=3, learning_rate=1e-2)
    assert history[-1]["train_negative_elbo"] < history[0]["train_negative_elbo"]
