"""The command line: what it writes and prints, and what it says of bad input."""

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vae_fast.app
from vae_fast import VAE
from vae_fast.app import cli
from vae_fast.extras import MissingExtra
from vae_fast.ops import backend

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="commands are the same on any backend"
)

WRITTEN = [
    "config.json",
    "curves.png",
    "latent.png",
    "metrics.csv",
    "model.safetensors",
    "reconstructions.png",
    "samples.png",
]


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two epochs on the digits, in a folder of its own."""
    folder = tmp_path_factory.mktemp("run")
    result = run("train", "--epochs", 2, "--output", folder, "--device", "cpu", "--hidden-dim", 32, "--hidden-dim", 16)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_the_version():
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{vae_fast.__version__}\n")


def test_train_writes_every_file_whole(trained):
    folder, _ = trained
    assert names(folder) == WRITTEN
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_train_writes_metrics_of_each_epoch(trained):
    folder, output = trained
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    final = float(rows[-1]["test_negative_elbo"])
    assert f"final test negative ELBO: {final:.2f} nats per image" in output
    assert f"{final:.3f}" in output


def test_train_writes_a_model_that_loads(trained):
    folder, _ = trained
    model = VAE.load(folder)
    assert [layer.out_features for layer in model.encoder.layers[::2]] == [32, 16, 16]
    assert model.generate(2).shape == (2, 8, 8)


def test_train_ends_with_the_comparison(trained):
    _, output = trained
    table = output[output.index("fused against eager PyTorch on this device") :]
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in table.splitlines() if line.startswith("│")}
    assert list(rows) == ["fused", "eager PyTorch"]
    assert float(rows["fused"][1]) == pytest.approx(float(rows["eager PyTorch"][1]), rel=1e-3)
    assert "interleaved steps on cpu; same weights, batches and noise" in table


def test_train_shows_no_path_but_the_output_and_no_noise(trained):
    folder, output = trained
    assert f"written to {folder}/\n" in output
    assert "Lightning" not in output


def test_a_path_is_shown_as_it_is(tmp_path):
    """Neither as Rich's markup, of which [/b] would be an error, nor broken into lines."""
    folder = tmp_path / f"run [b] of {'many words ' * 9}" / "[/b]"
    np.save(tmp_path / "images.npy", np.zeros((10, 4, 4), dtype=np.float32))
    result = run("train", "--data", tmp_path / "images.npy", "--output", folder, "--epochs", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert f"written to {folder}/\n" in result.output


@pytest.mark.parametrize("shape", [(10, 6, 5), (10, 3, 6, 5), (10, 6, 5, 1)])
def test_train_on_ones_own_images(tmp_path, monkeypatch, shape):
    monkeypatch.chdir(tmp_path)
    np.save("mine.npy", np.random.default_rng(0).random(shape))
    result = run("train", "--data", "mine.npy", "--epochs", 1, "--likelihood", "gaussian", "--latent-dim", 1)
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "runs" / "mine") == WRITTEN


def images(path, low=0.0, high=1.0):
    np.save(path, np.linspace(low, high, 4 * 9).reshape(4, 3, 3))
    return path


BAD_OPTIONS = [
    (
        ["--likelihood", "poison"],
        "'--likelihood': likelihood is 'poison': expected one of 'bernoulli', 'bernoulli_probs', ",
    ),
    (["--likelihood", "categorical"], "'--likelihood': likelihood is 'categorical': expected one of 'bernoulli', "),
    (["--epochs", "0"], "'--epochs': epochs is 0: expected 1 or more"),
    (["--epochs", "-3"], "'--epochs': epochs is -3: expected 1 or more"),
    (["--epochs", "ten"], "'--epochs': "),
    (["--batch-size", "0"], "'--batch-size': batch_size is 0: expected 1 or more"),
    (["--latent-dim", "0"], "'--latent-dim': latent_dim is 0: expected 1 or more"),
    (["--hidden-dim", "0"], "'--hidden-dim': hidden_dim[0] is 0: expected 1 or more"),
    (["--learning-rate", "0"], "'--learning-rate': learning_rate is 0.0: expected a finite number > 0"),
    (["--learning-rate", "1e38"], "'--learning-rate': learning_rate is 1e+38: expected 1e+37 or less"),
    (["--learning-rate", "nan"], "'--learning-rate': learning_rate is nan: expected a finite number > 0"),
    (["--beta", "-1"], "'--beta': beta is -1.0: expected a finite number >= 0"),
    (["--beta", "inf"], "'--beta': beta is inf: expected a finite number >= 0"),
    (["--seed", str(2**64)], "'--seed': seed is 18446744073709551616: expected an int in [-2^63, 2^64)"),
    (["--device", "tpu"], "'--device': device is 'tpu': expected 'auto', 'cpu', 'cuda' or 'cuda:<index>'"),
    (["--device", "cuda:99"], "'--device': device is 'cuda:99': PyTorch finds "),
    (["--data", "nothing.npy"], "'--data': nothing.npy cannot be read: No such file or directory"),
    (["--nonsense"], "No such option"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[" ".join(options) for options, _ in BAD_OPTIONS])
def test_bad_options(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("train", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert names(tmp_path) == []


def test_data_outside_the_domain_of_the_likelihood(tmp_path):
    result = run("train", "--data", images(tmp_path / "a.npy", high=16.0), "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "'--data': " in result.output
    assert "data is " in result.output
    assert "expected values that are in [0, 1], for likelihood 'bernoulli'" in result.output
    assert not (tmp_path / "out").exists()
    result = run("train", "--likelihood", "poisson")
    assert result.exit_code == 2
    assert "expected values that are whole numbers >= 0, for likelihood 'poisson'" in result.output


def test_data_that_is_not_images(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 9)))
    result = run("train", "--data", tmp_path / "a.npy", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "a.npy has shape [4, 9]: expected images [N, height, width]" in result.output
    (tmp_path / "b.npy").write_text("hello")
    result = run("train", "--data", tmp_path / "b.npy")
    assert result.exit_code == 2
    assert "b.npy is not a whole .npy file" in result.output


@pytest.mark.parametrize("command", ["train", "profile", "bench", "doctor", "audit"])
def test_a_backend_of_the_environment_that_is_none(command, monkeypatch):
    monkeypatch.setattr(backend, "_current", "nonsense")
    result = run(command)
    assert result.exit_code == 2
    message = "VAE_FAST_BACKEND is 'nonsense': expected one of 'triton', 'eager', 'auto'"
    assert f"'VAE_FAST_BACKEND': {message}" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["train", "profile"])
def test_a_backend_of_the_environment_that_does_not_take_the_device(command, monkeypatch):
    monkeypatch.setattr(backend, "_current", "triton")
    monkeypatch.setattr(backend, "HAS_TRITON", False)
    result = run(command, "--device", "cpu")
    assert result.exit_code == 2
    assert "'VAE_FAST_BACKEND': backend is \"triton\", but it is not installed" in result.output


def test_an_output_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "fit", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").touch()
    result = run("train", "--output", tmp_path / "file" / "run")
    assert result.exit_code == 2
    assert "'--output': " in result.output
    assert "expected a folder that can be written (Not a directory)" in result.output


def test_a_failure_while_drawing_leaves_whole_files_alone(tmp_path, monkeypatch):
    def broken(self, file, **_):
        Path(file).write_bytes(b"half a figure")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    result = run("train", "--epochs", 1, "--output", tmp_path, "--hidden-dim", 4)
    assert result.exit_code == 1
    assert names(tmp_path) == ["config.json", "metrics.csv", "model.safetensors"]


def test_doctor_passes_here():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert f"torch     {torch.__version__}" in result.output
    assert "FAILED" not in result.output
    assert "checks passed" in result.output


def test_doctor_fails_where_an_op_is_wrong(monkeypatch):
    right = vae_fast.functional.gaussian_kl
    monkeypatch.setattr(vae_fast.functional, "gaussian_kl", lambda *args, **options: right(*args, **options) * 1.001)
    result = run("doctor")
    assert result.exit_code == 1
    failed = [line.split("│")[1].strip() for line in result.output.splitlines() if "│ FAILED │" in line]
    assert set(failed) == {"gaussian_kl"}
    assert "checks FAILED" in result.output


def test_doctor_shows_what_was_raised_as_it_is(monkeypatch):
    def failing(*_):
        raise RuntimeError("[a] [/b]")

    monkeypatch.setattr(vae_fast.functional, "gaussian_kl", failing)
    result = run("doctor")
    assert result.exit_code == 1
    assert "│ RuntimeError: [a] [/b] │" in result.output


def test_the_help_lists_the_likelihoods_of_images():
    help_text = run("train", "--help").output
    assert "poisson" in help_text
    assert "categorical" not in help_text


def test_no_arguments_show_the_help():
    result = run()
    assert "train" in result.output
    assert "doctor" in result.output


def test_python_m_vae_fast():
    result = subprocess.run(
        [sys.executable, "-m", "vae_fast", "train", "--epochs", "0"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "'--epochs': epochs is 0: expected 1 or more" in result.stderr
    environment = {**os.environ, "VAE_FAST_BACKEND": "nonsense"}
    result = subprocess.run(
        [sys.executable, "-m", "vae_fast", "train"], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 2
    assert "VAE_FAST_BACKEND is 'nonsense'" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "vae_fast.app.cli")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r'vae-fast: typer is not installed: pip install -e "\.\[app\]"$'):
        vae_fast.app.main()


def test_import_without_the_extra():
    code = (
        "import sys\n"
        "for name in ('lightning', 'typer', 'rich', 'matplotlib', 'sklearn', 'safetensors'): sys.modules[name] = None\n"
        "import vae_fast, torch\n"
        "print(vae_fast.VAE((4,), 2).loss(torch.rand(3, 4)).total.isfinite().item(), vae_fast.fit.__name__)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("True fit\n", "")


@pytest.mark.parametrize("module", ["safetensors.torch", "matplotlib"])
def test_what_is_missing_is_found_before_training(module, monkeypatch, tmp_path):
    for name in ("vae_fast.app.figures", "vae_fast.benchmarks.drawing", module):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(cli, "fit", None)
    result = run("train", "--output", tmp_path)
    assert isinstance(result.exception, MissingExtra)
    assert str(result.exception) == f'{module} is not installed: pip install -e ".[app]"'


def test_doctor_and_audit_need_no_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import vae_fast.app.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ctrl_c_while_training_says_so(monkeypatch, tmp_path):
    def fit(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "fit", fit)
    result = run("train", "--output", tmp_path)
    assert (result.exit_code, result.output) == (130, "interrupted: nothing was written\n")


def test_a_full_disk_is_one_line(monkeypatch):
    def app():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/digits/curves.png")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit, match=r"^vae-fast: .*No space left on device: 'runs/digits/curves.png'$"):
        vae_fast.app.main()


def test_two_images_can_be_trained_on(tmp_path):
    np.save(tmp_path / "two.npy", np.random.default_rng(0).random((2, 5, 4)))
    result = run("train", "--data", tmp_path / "two.npy", "--output", tmp_path / "out", "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "latent.png").exists()
