"""pythae: the loss of its VAE, BetaVAE and DisentangledBetaVAE.

from vae_fast.integrations import pythae as fast

fast.patch()  # for the process, or `with fast.patch():`
"""

import torch

from vae_fast.compat import bernoulli_probs
from vae_fast.functional import gaussian_kl, reconstruction_loss
from vae_fast.integrations.patching import Patch, Project, wrap


def patch(*, force: bool = False) -> Patch:
    """Compute pythae's losses with the fused ops, until `unpatch()` or the end of `with patch():`.

    `loss_function` of VAE, BetaVAE and DisentangledBetaVAE returns what it did: (loss, reconstruction, KL), 0-d, nats
    per sample. "mse" is 1/2 of the squared error, summed over elements; "bce" takes probabilities. Models that inherit
    one of these loss functions are patched with it; the noise stays pythae's, which returns it.

    Losses are float32 (float64 for float64) and differentiable once. What pythae would broadcast or convert, and an x
    that requires a gradient, is pythae's own to compute. "bce" of something outside [0, 1] is NaN, where PyTorch's op
    raises. Returns a `Patch`, which says what it patched. force: take an untested version.

    Raises ImportError where pythae is missing, and RuntimeError where it is not a version that was tested.
    """
    return _project.patch(force)


def unpatch() -> None:
    """Put pythae's own loss functions back."""
    _project.unpatch()


def _changes():
    from pythae.models import VAE, BetaVAE, DisentangledBetaVAE

    losses = {VAE: _vae, BetaVAE: _beta_vae, DisentangledBetaVAE: _disentangled_beta_vae}
    return [wrap(cls, "loss_function", _fused(loss)) for cls, loss in losses.items()]


_project = Project("pythae", "pythae", ("0.1.2",), _changes)


def _fused(loss):
    def decorator(theirs):
        def loss_function(self, recon_x, x, mu, log_var, *rest, **named):
            call = loss if _fits(recon_x, x, mu, log_var) else theirs
            return call(self, recon_x, x, mu, log_var, *rest, **named)

        return loss_function

    return decorator


def _fits(recon_x, x, mu, log_var):
    """Whether the fused losses take them: floats of one batch, of which none is broadcast, and no gradient for x.

    Bytes would be divided by 255. float64 beside another dtype is refused, or makes losses of another dtype.
    """
    return (
        x.is_floating_point()
        and not x.requires_grad
        and x.numel() == recon_x.numel()
        and mu.dim() == 2
        and mu.shape == log_var.shape
        and mu.shape[0] == x.shape[0]
        and (recon_x.dtype == torch.float64) == (x.dtype == torch.float64)
        and (mu.dtype == torch.float64) == (log_var.dtype == torch.float64)
    )


def _vae(model, recon_x, x, mu, log_var, z):
    reconstruction, kl = _reconstruction(model, recon_x, x), gaussian_kl(mu, log_var)
    return reconstruction + kl, reconstruction, kl


def _beta_vae(model, recon_x, x, mu, log_var, z):
    reconstruction, kl = _reconstruction(model, recon_x, x), gaussian_kl(mu, log_var)
    return reconstruction + model.beta * kl, reconstruction, kl


def _disentangled_beta_vae(model, recon_x, x, mu, log_var, z, epoch):
    reconstruction, kl = _reconstruction(model, recon_x, x), gaussian_kl(mu, log_var, reduction="sample")
    capacity = model.C * min(epoch / (model.warmup_epoch + 1), 1)
    distance = (kl - capacity).abs().mean()  # of each sample, before the mean
    return reconstruction + model.beta * distance, reconstruction, kl.mean()


def _reconstruction(model, recon_x, x):
    """Nats per sample."""
    batch, kind = x.shape[0], model.model_config.reconstruction_loss
    recon_x, x = recon_x.reshape(batch, -1), x.reshape(batch, -1)
    if kind == "mse":
        return 0.5 * reconstruction_loss(recon_x, x, "mse")
    if kind == "bce":
        return bernoulli_probs(recon_x, x) / batch
    raise ValueError(f'model_config.reconstruction_loss is {kind!r}: expected "mse" or "bce"')
