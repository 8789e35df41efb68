"""The figures: drawn for every kind of image, with axes that say what they show."""

import os

import matplotlib
import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure

from vae_fast import VAE
from vae_fast.app import figures

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="figures do not depend on the backend"
)

SHAPES = [
    (6, 5),  # grey
    (3, 3),  # grey, whose rows and columns could be taken for channels
    (1, 6, 5),  # one channel, first
    (3, 6, 5),  # colour, channels first
    (6, 5, 1),  # one channel, last
    (6, 5, 3),  # colour, channels last
]
HISTORY = [
    {f"{part}_{key}": 1.0 / epoch for part in ("train", "test") for key in ("negative_elbo", "reconstruction", "kl")}
    | {"epoch": epoch}
    for epoch in (1, 2, 3)
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, to be looked into."""
    seen = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: (seen.append(self), savefig(self, *args, **options))
    )
    return seen


def test_curves_say_what_they_show(tmp_path, drawn):
    figures.curves(HISTORY, tmp_path / "curves.png")
    (figure,) = drawn
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["train", "test"]
    assert [axes.get_title() for axes in figure.axes] == ["negative ELBO", "reconstruction", "KL"]
    for axes in figure.axes:
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "nats per sample")
        assert [line.get_label() for line in axes.lines] == ["train", "test"]
    assert matplotlib.image.imread(tmp_path / "curves.png").shape == (450, 1350, 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_every_kind(tmp_path, shape):
    model, images = VAE(shape, 3, (8,)), torch.rand(4, *shape)
    figures.reconstructions(model, images, tmp_path / "reconstructions.png")
    figures.samples(model, tmp_path / "samples.png", torch.Generator().manual_seed(0), side=2)
    for name in ("reconstructions", "samples"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.01


def test_reconstructions_stand_below_their_images(tmp_path, drawn):
    model, images = VAE((6, 5), 3, (8,)), torch.rand(20, 6, 5)
    figures.reconstructions(model, images, tmp_path / "a.png", columns=7)
    shown = [axes.images[0].get_array() for axes in drawn[0].axes]
    torch.testing.assert_close(torch.tensor(shown[1]), images[1])
    torch.testing.assert_close(torch.tensor(shown[7 + 1]), model.reconstruct(images)[1])
    assert [drawn[0].axes[i].get_ylabel() for i in (0, 7)] == ["test image", "reconstruction"]


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_of_every_kind_are_shown_where_they_are(tmp_path, drawn, shape):
    """Colours, of which matplotlib clips what is not in [0, 1], over the range of all images; grey ones as they are."""
    images = 10 * torch.rand(4, *shape) - 3
    figures.reconstructions(VAE(shape, 3, (8,), likelihood="mse"), images, tmp_path / "a.png")
    axes = drawn[0].axes[2]
    shown, wanted = torch.tensor(axes.images[0].get_array()), images[2]
    wanted = wanted.movedim(0, -1) if len(shape) == 3 and shape[0] in (1, 3) else wanted
    if len(shape) == 3 and 3 in shape:
        wanted = (wanted - images.min()) / (images.max() - images.min())
    torch.testing.assert_close(shown.float().view(wanted.shape), wanted)
    assert axes.images[0].get_clim() == (images.min().item(), images.max().item())
    assert not len(axes.get_xticks())


def test_images_of_one_value(tmp_path):
    figures.reconstructions(VAE((3, 6, 5), 3, (8,)), torch.zeros(2, 3, 6, 5), tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("latents", [1, 2, 5])
def test_latent_shows_shares_of_the_variance(tmp_path, drawn, latents):
    figures.latent(VAE((6, 5), latents, (8,)), torch.rand(30, 6, 5), torch.arange(30) % 3, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    shares = [int(label.split("(")[1].split("%")[0]) for label in (axes.get_xlabel(), axes.get_ylabel())]
    assert shares[0] >= shares[1] >= 0
    assert sum(shares) <= 101
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["0", "1", "2"]
    if latents == 1:
        assert shares == [100, 0]


def test_latent_without_labels_shows_the_kl(tmp_path, drawn):
    model, images = VAE((6, 5), 2, (8,)), torch.rand(30, 6, 5)
    figures.latent(model, images, None, tmp_path / "a.png")
    assert drawn[0].axes[1].get_ylabel() == "KL, nats per sample"
    shown = torch.tensor(drawn[0].axes[0].collections[0].get_array()).float()
    torch.testing.assert_close(shown, model.encode(images).kl(reduction="sample").detach())


def test_principal_components_hold_the_variance():
    means = torch.randn(100, 4) * torch.tensor([5.0, 0.1, 3.0, 0.1])
    points, share = figures._principal_components(means)
    variances = torch.tensor(points).var(0, correction=0)
    total = means.var(0, correction=0).sum()
    torch.testing.assert_close(variances / total, torch.tensor(share))
    assert sum(share) > 0.99


@pytest.mark.parametrize("latents", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2])
def test_principal_components_of_few_images(count, latents):
    points, share = figures._principal_components(torch.randn(count, latents))
    assert points.shape == (count, 2)
    assert len(share) == 2
    assert all(0 <= part <= 1.001 for part in share)


def test_the_settings_of_matplotlib_are_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    figures.curves(HISTORY, tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
