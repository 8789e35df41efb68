"""The public functions: check the arguments, then call the ops."""

from typing import NamedTuple

import torch

from vae_fast import checks, classes, likelihoods
from vae_fast.eager.reductions import accumulator
from vae_fast.ops import backend, categorical, elbo, gaussian, reconstruction


class ELBO(NamedTuple):
    """The negative ELBO and its parts, 0-d, in nats per sample: total = reconstruction + beta * kl."""

    total: torch.Tensor
    reconstruction: torch.Tensor
    kl: torch.Tensor


def sample_kl(mu, logvar, *, prior=None, logvar_clamp=None, reduction="sample", seed=None, generator=None, eps=None):
    """Sample z = mu + exp(logvar/2) * eps and the KL of the posterior to the prior, in one pass.

    Kingma & Welling 2014: equation 4 (the reparameterised sample) and appendix B (the KL in closed form).

    Args:
        mu, logvar: [B, ...], of one shape, dtype (float32, bfloat16, float16 or float64) and device; any strides.
        prior: a tuple (mu, logvar) of tensors that expand to the posterior's shape, in its dtype; None is N(0, I).
        logvar_clamp: (low, high): logvar is clamped, with gradient 1 at the bounds and 0 outside.
        reduction: of the kl. "sample": [B], summed over elements; "none": elementwise; "latent": the mean over the
            batch, of shape mu.shape[1:]; "sum"; "mean" over all elements; "batchmean": nats per sample.
        seed: an int in [-2^63, 2^64) or an int64 tensor of one element. The same seed gives the same eps in every call,
            on every backend: pass different ones per layer and step. Element i of eps belongs to the i-th element of
            z's memory, so the sample depends on mu's memory format (channels_last or not).
        generator: draws the seed, or on the eager path eps. torch's default one for the device if none is given. A
            generator can neither be replayed by activation checkpointing nor traced by torch.compile(fullgraph=True);
            `seed` can. Drawn numbers differ between backends, and between eager calls and torch.compile.
        eps: the noise itself, of mu's shape.

    Returns:
        (z, kl): z has mu's dtype and memory format; kl is in nats, float32 (float64 for float64). Both are
        differentiable in mu, logvar and the prior, once: a second derivative raises RuntimeError.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value, or seed or eps requires a
            gradient, or more than one of seed, generator and eps was given.

    >>> z, kl = sample_kl(torch.zeros(4, 2), torch.zeros(4, 2), seed=0)
    >>> z.shape, kl
    (torch.Size([4, 2]), tensor([0., 0., 0., 0.]))
    """
    checks.posterior(mu, logvar)
    checks.reduction(reduction, checks.LATENT_REDUCTIONS)
    return tuple(_latent(mu, logvar, mu, 0, prior, logvar_clamp, reduction, (seed, generator, eps)))


def sample_kl_packed(
    moments, dim=1, *, prior=None, logvar_clamp=None, reduction="sample", seed=None, generator=None, eps=None
):
    """`sample_kl` of moments = cat(mu, logvar) along `dim`, which writes one gradient for it: no chunk, no cat.

    moments: [B, ...], of even size along `dim`, which is not the batch. Everything else, errors included, as in
    `sample_kl`.

    >>> z, kl = sample_kl_packed(torch.zeros(4, 6), seed=0)
    >>> z.shape, kl.shape
    (torch.Size([4, 3]), torch.Size([4]))
    """
    dim = checks.moments(moments, dim)
    checks.reduction(reduction, checks.LATENT_REDUCTIONS)
    mu = moments.narrow(dim, 0, moments.shape[dim] // 2)
    return tuple(_latent(moments, None, mu, dim, prior, logvar_clamp, reduction, (seed, generator, eps)))


def reparameterize(mu, logvar, *, logvar_clamp=None, seed=None, generator=None, eps=None):
    """Sample z = mu + exp(logvar/2) * eps (Kingma & Welling 2014, equation 4). Arguments and errors as in `sample_kl`.

    >>> reparameterize(torch.ones(1, 2), torch.zeros(1, 2), eps=torch.tensor([[0.0, 2.0]]))
    tensor([[1., 3.]])
    """
    checks.posterior(mu, logvar)
    return _latent(mu, logvar, mu, 0, None, logvar_clamp, None, (seed, generator, eps))[0]


def gaussian_kl(mu, logvar, *, prior=None, logvar_clamp=None, reduction="batchmean"):
    """KL(N(mu, exp(logvar)) || prior) in nats, in closed form (Kingma & Welling 2014, appendix B).

    Arguments and errors as in `sample_kl`; the default reduction, "batchmean", is nats per sample. Returns float32
    (float64 for float64). The KL of an empty batch sums to 0 and averages to NaN.

    >>> gaussian_kl(torch.zeros(4, 2), torch.zeros(4, 2)).item()
    0.0
    """
    checks.posterior(mu, logvar)
    checks.reduction(reduction, checks.LATENT_REDUCTIONS)
    return _latent(mu, logvar, mu, 0, prior, logvar_clamp, reduction, None)[0]


def reconstruction_loss(output, target, likelihood="bernoulli", *, reduction="batchmean"):
    """The negative log-likelihood of `target` in nats, given the likelihood's parameters.

    Args:
        output: the parameters. "bernoulli": logits [B, ...]; "gaussian": the tuple (mean, logvar), each [B, ...];
            "mse": the output [B, ...], for the squared error, which is the Gaussian nll at variance 1/2 less log(pi)/2
            per element: as a loss it is not an ELBO; "categorical": logits [B, ..., K], the classes last. float32,
            bfloat16, float16 or float64, any strides.
        target: of the output's shape, without broadcasting; its float dtype may differ. It must not require a gradient.
            "categorical": class indices [B, ...], int64, int32, int16, int8 or uint8. Their values are not checked,
            which would wait for the device: the nll of one outside [0, K), and its gradient, is NaN.
        likelihood: "bernoulli" (Kingma & Welling 2014, appendix C.1), "gaussian" (C.2), "mse", or "categorical" (Bishop
            2006, equation 4.108), which is `Categorical()`; `Categorical(ignore_index=-100)` leaves elements out.
        reduction: "batchmean": nats per sample; "sum"; "mean" over all elements; "sample": [B]; "none": elementwise.
            Elements that are left out count as elements of nll 0, which "mean" divides by as by any: torch's
            cross_entropy divides by the others alone.

    Returns:
        float32 (float64 for a float64 output), differentiable once: a second derivative raises RuntimeError, or is
        right where PyTorch's own op computes (small float32 losses on the CPU). A scalar loss makes its gradient in the
        forward pass. An empty batch sums to 0 and averages to NaN.

    Raises:
        TypeError: output is not what the likelihood takes, or not of a float dtype.
        ValueError: unequal shapes or devices, an unknown likelihood or reduction, a target that requires a gradient.

    >>> reconstruction_loss(torch.zeros(2, 3), torch.ones(2, 3)).item()  # 3 log 2 nats per sample
    2.0794...
    """
    row = likelihoods.lookup(likelihood)
    params = checks.output(output, target, row)
    checks.reduction(reduction, checks.REDUCTIONS)
    if row.domain == "classes":
        return categorical.reconstruct(*params, target, _categorical(likelihood, reduction, target))
    return reconstruction.reconstruct(params, target, reconstruction.Spec(row.name, reduction, backend.choose(target)))


def elbo_loss(output, target, kl, *, likelihood="bernoulli", beta=1.0):
    """The negative ELBO in nats per sample: total = reconstruction + beta * kl (Kingma & Welling 2014, equation 3).

    Args:
        output, target, likelihood: as in `reconstruction_loss`. For "categorical" the kl is averaged and added by
            PyTorch's own operators; for the others, in the loss's second launch.
        kl: [B], one a sample, as `sample_kl` gives it, or 0-d, already averaged over the batch. float32 or float64.
        beta: the weight of the kl (Higgins et al. 2017): a number, or a 0-d tensor, which torch.compile does not
            recompile for. With 1, total is the quantity that people report.

    Returns:
        ELBO(total, reconstruction, kl): a NamedTuple of 0-d tensors, each differentiable once; reconstruction and kl
        are unweighted.

    Raises:
        TypeError, ValueError: as `reconstruction_loss`; a kl of another shape or dtype; a beta that is negative, not
            finite, not a number or 0-d tensor, or requires a gradient.

    >>> elbo_loss(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, 3.0])).kl.item()
    2.0
    """
    row = likelihoods.lookup(likelihood)
    params = checks.output(output, target, row)
    checks.kl(kl, target)
    beta_tensor, number = checks.weight("beta", beta, "target", target)
    if row.domain == "classes":
        spec = _categorical(likelihood, "batchmean", target)
        return ELBO(*categorical.negative_elbo(*params, target, kl, beta_tensor, number, spec))
    return ELBO(*elbo.elbo(params, target, kl, beta_tensor, elbo.Spec(number, row.name, backend.choose(target))))


def _categorical(likelihood, reduction, target):
    return categorical.Spec(classes.ignore_index(likelihood), reduction, backend.choose(target))


def _latent(posterior, logvar, mu, dim, prior, logvar_clamp, reduction, source):
    """Call the latent op. `posterior` is mu, or moments if logvar is None; `source` is None if nothing is sampled."""
    prior = checks.prior(prior, mu.shape, mu)
    clamp = checks.clamp(logvar_clamp)
    chosen = backend.choose(mu)
    seed, eps = (None, None) if source is None else _noise(mu, *source, chosen)
    return gaussian.latent(posterior, logvar, *prior, seed, eps, gaussian.Spec(reduction, *clamp, dim, chosen))


def _noise(mu, seed, generator, eps, chosen):
    """(seed tensor, None) or (None, eps)."""
    checks.one_source(seed, generator, eps)
    if eps is not None:
        checks.eps(eps, mu.shape, mu)
        return None, eps
    if isinstance(seed, torch.Tensor):
        checks.seed_tensor(seed, mu)
        return seed.reshape(1), None
    if seed is not None:
        return torch.full((1,), checks.seed_int(seed), dtype=torch.int64, device=mu.device), None
    if generator is not None:
        checks.generator(generator, mu)
    if chosen == "triton":
        return torch.randint(2**63 - 1, (1,), generator=generator, device=mu.device), None
    # On the eager path Philox costs more than the whole loss at small sizes: eps is drawn, and kept for backward.
    return None, torch.empty_like(mu, dtype=accumulator(mu.dtype)).normal_(generator=generator)
