"""Loss functions of other people's training loops, under their names and with their numbers."""

from torch import Tensor

from vae_fast import checks
from vae_fast.functional import gaussian_kl, reconstruction_loss


def vae_loss(recon_x: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The loss of pytorch/examples' vae/main.py (`loss_function`): nats of the whole batch, not per sample.

    Binary cross-entropy of probabilities plus the KL to N(0, I), both summed over all elements and the batch
    (Kingma & Welling 2014, appendices B and C.1). With logits, which are better where the sigmoid saturates:
    `reconstruction_loss(logits, x, reduction="sum") + gaussian_kl(mu, logvar, reduction="sum")`.

    Args:
        recon_x: [B, ...], probabilities in [0, 1]: the decoder's output after its sigmoid. As in PyTorch the log is
            not below -100, so the loss is finite at 0 and 1, and the gradient there is PyTorch's. Outside [0, 1] the
            loss is NaN, where PyTorch's op raises: to look would wait for the GPU.
        x: the data in [0, 1], as many elements as recon_x; it is given recon_x's shape, [B, 1, 28, 28] -> [B, 784].
            Of any float dtype, where PyTorch wants recon_x's. It must not require a gradient.
        mu, logvar: [B, L], in dtypes as `gaussian_kl` takes them.

    Returns:
        0-d, float32 (float64 where an argument is), differentiable once; divide by B for nats per sample.

    Raises:
        TypeError, ValueError: as `reconstruction_loss` and `gaussian_kl`; x of another number of elements than recon_x.

    >>> half, zero = torch.full((2, 3), 0.5), torch.zeros(2, 4)
    >>> vae_loss(half, torch.ones(2, 3), zero, zero).item()  # 6 log 2
    4.1588...
    """
    checks.is_float("recon_x", recon_x)
    checks.is_float("x", x)
    if x.numel() != recon_x.numel():
        raise ValueError(
            f"x has shape {list(x.shape)}, recon_x has {list(recon_x.shape)}: expected as many elements in both"
        )
    return bernoulli_probs(recon_x, x.reshape(recon_x.shape)) + gaussian_kl(mu, logvar, reduction="sum")


def bernoulli_probs(probs: Tensor, target: Tensor) -> Tensor:
    """F.binary_cross_entropy(probs, target, reduction="sum"): the log is not below -100."""
    checks.is_float("target", target)  # PyTorch's refuses others; ours would take bytes for pixels
    return reconstruction_loss(probs, target, "bernoulli_probs", reduction="sum")
