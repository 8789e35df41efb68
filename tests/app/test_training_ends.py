"""How training ends before its time: Ctrl-C and a user's own exit stay what they are, and SIGTERM is as Ctrl-C."""

import os
import signal
import subprocess
import sys

import pytest
import torch

import vae_fast
from vae_fast.app.training import fit

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="training is the model's, tested there"
)

DATA = torch.rand(4, 8, 8)


def model():
    return vae_fast.VAE((8, 8), 4, (32,))


def fast(vae, data, **options):
    return fit(vae, data, epochs=1, progress=False, device="cpu", **options)


def test_ctrl_c_stays_one(monkeypatch):
    """Lightning makes an exit of it, and would ignore the next; the model keeps what it has learnt."""
    vae, before = model(), signal.getsignal(signal.SIGINT)
    start = vae_fast.models.VAE.loss
    steps = []

    def interrupted(self, x):
        steps.append(len(x))
        if len(steps) == 3:
            raise KeyboardInterrupt
        return start(self, x)

    weights = [p.clone() for p in vae.parameters()]
    monkeypatch.setattr(vae_fast.models.VAE, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fast(vae, DATA.repeat(16, 1, 1), batch_size=8)
    assert len(steps) == 3
    assert signal.getsignal(signal.SIGINT) is before
    assert not all(map(torch.equal, weights, vae.parameters()))
    assert all(p.grad is None for p in vae.parameters())


def test_after_ctrl_c_in_testing_each_module_is_in_its_mode():
    def interrupted(module, _):
        if not module.training:
            raise KeyboardInterrupt

    vae = model()
    vae.encoder.register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        fast(vae, DATA, test_data=DATA)
    assert all(module.training for module in vae.modules())


def test_a_handler_of_ctrl_c_that_python_does_not_know_is_left_alone(monkeypatch):
    """As where Python is embedded in another program."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    assert len(fast(model(), DATA)) == 1


def test_an_exit_of_ones_own_stays_one():
    def leave(*_):
        raise SystemExit(3)

    vae = model()
    vae.encoder.register_forward_pre_hook(leave)
    with pytest.raises(SystemExit, match="^3$"):
        fast(vae, DATA)


def test_the_end_that_a_batch_system_sets_is_as_ctrl_c(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from vae_fast.app import cli, main\n"
        "cli.fit = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.argv = ['vae-fast', 'train', '--output', {str(tmp_path)!r}]\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (130, "interrupted: nothing was written\n")
