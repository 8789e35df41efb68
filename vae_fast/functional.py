"""The public functions: check the arguments, then call the ops.

First asked is `small`, who may know a shorter way, and returns None where it does not; and then `kinds`, whether a call
of this kind has been checked. `latents` asks the same, for those of an encoder's output.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vae_fast import checks, classes, latents, likelihoods, outputs
from vae_fast.likelihoods import LikelihoodLike
from vae_fast.ops import backend, categorical, elbo, kinds, reconstruction, small
from vae_fast.ops.gaussian import APART, NO_KL
from vae_fast.scales import ScaleLike


class ELBO(NamedTuple):
    """The negative ELBO and its parts, 0-d, in nats per sample: total = reconstruction + beta * kl."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor


def sample_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior: tuple[Tensor, Tensor] | None = None,
    logvar_clamp: tuple[float, float] | None = None,
    scale: ScaleLike = "logvar",
    kl: str = "closed_form",
    num_samples: int | None = None,
    reduction: str = "sample",
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    eps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample z = mu + exp(logvar/2) * eps and the KL of the posterior to the prior, in one pass.

    Kingma & Welling 2014: equation 4 (the reparameterised sample) and appendix B (the KL in closed form).

    Args:
        mu, logvar: [B, ...], of one shape and device; any strides. float32, bfloat16 or float16, in any mixture, as
            autocast makes them, or both float64.
        prior: a tuple (mu, logvar) of tensors that expand to the posterior's shape, each in any of these dtypes, but
            float64 only beside float64; None is N(0, I).
        logvar_clamp: (low, high): logvar is clamped, with gradient 1 at the bounds and 0 outside. With scale "logvar".
            A bound may be infinite, as is one beyond float32 to its arithmetic.
        scale: what `logvar` holds, v, and the prior's second tensor too: "logvar", std = exp(v/2); "logstd",
            std = exp(v); "std", std = v, whose values are not checked: a KL of v <= 0 is inf or NaN; "softplus" or
            `Softplus(epsilon=1e-4)`, std = log(1 + exp(v)) + epsilon; `SoftClamp(bound=5.0)`, NVAE's, which also bounds
            both mus. In float32 a std made by softplus or with an epsilon is rounded once, to 6e-8 of itself.
        kl: "closed_form", or "monte_carlo": log q(z) - log p(z) at the z that is drawn, before it is rounded to mu's
            dtype (Burda et al. 2016). It may be negative. Its gradient is that of the whole expression, through z too.
        num_samples: K, for z of [K, B, ...]: K samples from one reading of mu and logvar, whose gradients sum over K. A
            closed-form kl is as without it; a Monte Carlo kl is one for each sample, with a dimension K in front:
            [K, B] for "sample". None is one sample, without that dimension.
        reduction: of the kl. "sample": [B], summed over elements; "none": elementwise; "latent": the mean over the
            batch, of shape mu.shape[1:]; "sum"; "mean" over all elements; "batchmean": nats per sample.
        seed: an int in [-2^63, 2^64) or an int64 tensor of one element. The same seed gives the same eps in every call,
            on every backend: pass different ones per layer, step and process of distributed training. Element i of eps
            belongs to the i-th element of z's memory, so the sample depends on mu's memory format (channels_last or
            not).
        generator: draws the seed, or on the eager path eps. torch's default one for the device if none is given. A
            generator can neither be replayed by activation checkpointing nor traced by torch.compile(fullgraph=True);
            `seed` can. Drawn numbers differ between backends, and between eager calls and torch.compile.
        eps: the noise itself, of z's shape.

    Returns:
        (z, kl): z has mu's dtype and memory format, K samples one behind the other; kl is in nats, float32 (float64 for
        float64). Both are differentiable in mu, logvar and the prior, once: a second derivative raises RuntimeError.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value, or seed or eps requires a
            gradient, or more than one of seed, generator and eps was given.

    >>> z, kl = sample_kl(torch.zeros(4, 2), torch.zeros(4, 2), seed=0)
    >>> z.shape, kl
    (torch.Size([4, 2]), tensor([0., 0., 0., 0.]))
    """
    options = prior, logvar_clamp, scale, kl, num_samples, reduction, (seed, generator, eps)
    return tuple(latents.compute(mu, logvar, APART, *options))


def sample_kl_packed(
    moments: Tensor,
    dim: int = 1,
    *,
    prior: tuple[Tensor, Tensor] | None = None,
    logvar_clamp: tuple[float, float] | None = None,
    scale: ScaleLike = "logvar",
    kl: str = "closed_form",
    num_samples: int | None = None,
    reduction: str = "sample",
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    eps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sample_kl` of moments = cat(mu, logvar) along `dim`, which writes one gradient for it: no chunk, no cat.

    moments: [B, ...], of even size along `dim`, which is not the batch. Everything else, errors included, as in
    `sample_kl`.

    >>> z, kl = sample_kl_packed(torch.zeros(4, 6), seed=0)
    >>> z.shape, kl.shape
    (torch.Size([4, 3]), torch.Size([4]))
    """
    options = prior, logvar_clamp, scale, kl, num_samples, reduction, (seed, generator, eps)
    return tuple(latents.compute(moments, None, dim, *options))


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    logvar_clamp: tuple[float, float] | None = None,
    scale: ScaleLike = "logvar",
    num_samples: int | None = None,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """Sample z = mu + exp(logvar/2) * eps (Kingma & Welling 2014, equation 4). Arguments and errors as in `sample_kl`.

    >>> reparameterize(torch.ones(1, 2), torch.zeros(1, 2), eps=torch.tensor([[0.0, 2.0]]))
    tensor([[1., 3.]])
    """
    options = None, logvar_clamp, scale, "closed_form", num_samples, NO_KL, (seed, generator, eps)
    return latents.compute(mu, logvar, APART, *options)[0]


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior: tuple[Tensor, Tensor] | None = None,
    logvar_clamp: tuple[float, float] | None = None,
    scale: ScaleLike = "logvar",
    reduction: str = "batchmean",
) -> Tensor:
    """KL(N(mu, exp(logvar)) || prior) in nats, in closed form (Kingma & Welling 2014, appendix B).

    Arguments and errors as in `sample_kl`; the default reduction, "batchmean", is nats per sample. Returns float32
    (float64 for float64). The KL of an empty batch sums to 0 and averages to NaN.

    >>> gaussian_kl(torch.zeros(4, 2), torch.zeros(4, 2)).item()
    0.0
    >>> gaussian_kl(torch.zeros(4, 2), torch.ones(4, 2), scale="std").item()
    0.0
    """
    options = prior, logvar_clamp, scale, "closed_form", None, reduction, None
    return latents.compute(mu, logvar, APART, *options)[0]


def reconstruction_loss(
    output: Tensor | tuple[Tensor, ...],
    target: Tensor,
    likelihood: LikelihoodLike = "bernoulli",
    *,
    reduction: str = "batchmean",
    target_scale: float | None = None,
    weight: Tensor | None = None,
    binarize: bool = False,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    validate: bool = False,
) -> Tensor:
    """The negative log-likelihood of `target` in nats, given the likelihood's parameters.

    Args:
        output: the likelihood's parameters: one tensor [B, ...], or a tuple of several, of which the first is [B, ...]
            and each other expands to it. float32, bfloat16 or float16, in any mixture, or all float64; any strides.
            The gradient of one number, such as a learned scale (0-d), or of one for each index of a dimension after the
            batch, a feature [G] or a channel [C, 1, 1], is summed in the same pass, in a fixed order; that of any other
            parameter that expands is made for every element and then summed, which moves 2N elements more.
            "categorical": logits [B, ..., K], the classes last.
        target: of the output's shape, without broadcasting. Its dtype is its own: a float dtype, bool, uint8, int8,
            int16, int32 or int64, read as it is, without a float copy. It must not require a gradient: of one that
            does, as a flow's z under its prior, a likelihood of real values takes the difference, mean - target, as its
            mean and zeros as its target; or see `DiagonalGaussian.log_prob`.
            "categorical": class indices [B, ...], int64, int32, int16, int8 or uint8; the nll of one outside [0, K),
            and its gradient, is NaN.
        likelihood: parameters in brackets. For targets in [0, 1] "bernoulli" (logits; Kingma & Welling 2014, appendix
            C.1), "bernoulli_probs" (probabilities, with the bounds of torch's binary_cross_entropy),
            "continuous_bernoulli" (logits; Loaiza-Ganem & Cunningham 2019, equation 3), "discretized_logistic" (mean,
            log_scale; Salimans et al. 2017, equation 2: 256 levels k / 255; where code has pixels in [-1, 1], give
            (mean + 1) / 2 and log_scale - log 2, made in float32). For real ones "gaussian" (mean, logvar;
            Kingma & Welling, C.2), "laplace" (mean, log_scale), "student_t" or `StudentT(df)` (mean, log_scale), and
            the errors "mse", "l1", "log_cosh", "huber" or `Huber(delta)` (output), which as losses are no ELBO: "mse"
            is the Gaussian nll at variance 1/2 less log(pi)/2 per element. For counts "poisson" (log_rate),
            "negative_binomial" (mean, theta) and "zero_inflated_negative_binomial" (mean, theta, pi_logits), in
            scvi-tools' parametrisation (Lopez et al. 2018), with every constant. For classes "categorical" (logits;
            Bishop 2006, equation 4.108) or `Categorical(ignore_index)`, which leaves elements out: they count as
            elements of nll 0, which "mean" divides by as by any, where torch's cross_entropy divides by the others
            alone. It takes neither target_scale nor binarize.
        reduction: "batchmean": nats per sample; "sum"; "mean" over all elements; "sample": [B]; "none": elementwise.
        target_scale: a finite number >= 0 that the target is multiplied by after its conversion to the arithmetic's
            dtype. None is 1/255 for a uint8 target, pixels, under a likelihood of values in [0, 1] or of real values,
            and 1 for all others: floats, bool, other integers, and uint8 counts under a likelihood of counts.
        weight: of each element's nll: bool (a mask) or a float dtype, not requiring a gradient. Of shape [B], one a
            sample; or of as many dimensions as the target, each 1 or the target's, such as [B, 1, H, W] for an image's
            mask or [1, D] for one of features; read at its own size. Where it is 0 nothing counts, not even NaN. "mean"
            and "batchmean" divide by all elements and samples as ever, not by the sum of the weights.
        binarize: for "bernoulli" alone: the target holds probabilities, after `target_scale`, and a new sample of 0 and
            1 is drawn in their place by each call (Salakhutdinov & Murray 2008). It is not stored: backward draws it
            again.
        seed, generator: of that sample, as in `sample_kl`: the same seed gives the same sample on every backend, by an
            element's position in the output's memory.
        validate: check that the values of output and target are in the likelihood's domain, such as whole numbers and
            theta > 0 for counts. Logits of classes may be -inf, as a mask of classes makes them. It costs a pass over
            each tensor and waits for the device: for debugging.

    Returns:
        float32 (float64 for a float64 output), differentiable once: a second derivative raises RuntimeError, or is
        right where PyTorch's own op computes (small float32 losses on the CPU). A scalar loss makes its gradient in the
        forward pass. An empty batch sums to 0 and averages to NaN.

    Raises:
        TypeError: output is not what the likelihood takes, or not of a float dtype; target, weight, target_scale,
            binarize or seed has another type or dtype.
        ValueError: unequal shapes or devices, an unknown likelihood or reduction, a target or weight that requires a
            gradient; binarize for another likelihood; seed and generator together, or without binarize; with
            validate, a value out of the likelihood's domain.

    >>> reconstruction_loss(torch.zeros(2, 3), torch.ones(2, 3)).item()  # 3 log 2 nats per sample
    2.0794...
    >>> image = torch.full((2, 3), 255, dtype=torch.uint8)
    >>> reconstruction_loss(torch.zeros(2, 3), image, "mse", weight=torch.tensor([1.0, 0.0]), reduction="sum").item()
    3.0
    """
    row, noise = likelihoods.lookup(likelihood), (binarize, seed, generator)
    if validate is False:
        loss = small.reconstruct(output, target, row, reduction, target_scale, weight, noise)
        if loss is not None:
            return loss
    key, kind = outputs.find(output, target, weight, (), row, reduction, target_scale, noise, validate)
    if kind is not None:
        return kind(*outputs.known(output, target, weight, row, noise))
    params = outputs.check(output, target, row)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    options = target_scale, weight, noise, validate
    if row.domain == "classes":
        weight = classes.prepare(target, params[0], row, *options)
        spec = categorical.Spec.of(row, reduction, backend.choose(target))
        kinds.keep(key, params, categorical.Kind, spec, params, target)
        return categorical.reconstruct(*params, target, weight, spec)
    params, target, weight, seed, scale, chosen = outputs.prepare(params, target, row, *options)
    spec = reconstruction.Spec(scale, row.name, reduction, chosen)
    kinds.keep(key, params, reconstruction.Kind, spec, params, target)
    return reconstruction.reconstruct(params, target, weight, seed, spec)


def elbo_loss(
    output: Tensor | tuple[Tensor, ...],
    target: Tensor,
    kl: Tensor,
    *,
    likelihood: LikelihoodLike = "bernoulli",
    beta: float | Tensor = 1.0,
    target_scale: float | None = None,
    weight: Tensor | None = None,
    binarize: bool = False,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    validate: bool = False,
) -> ELBO:
    """The negative ELBO in nats per sample: total = reconstruction + beta * kl (Kingma & Welling 2014, equation 3).

    Args:
        output, target, likelihood, target_scale, binarize, seed, generator, validate: as in `reconstruction_loss`.
            For "categorical" the kl is averaged and added by PyTorch's own operators.
        kl: [B], one a sample, as `sample_kl` gives it, or 0-d, already averaged over the batch. float32 or float64.
        beta: the weight of the kl (Higgins et al. 2017): a number, or a 0-d tensor, which torch.compile compiles once
            for. With 1, total is the quantity that people report. One beyond float32 is infinite to it.
        weight: of the reconstruction, as in `reconstruction_loss`; the kl has none.

    Returns:
        ELBO(total, reconstruction, kl): a NamedTuple of 0-d tensors, each differentiable once; the kl is without its
        beta.

    Raises:
        TypeError, ValueError: as `reconstruction_loss`; a kl of another shape or dtype; a beta that is negative, not
            finite, not a number or 0-d tensor, or requires a gradient.

    >>> elbo_loss(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, 3.0])).kl.item()
    2.0
    """
    row, noise = likelihoods.lookup(likelihood), (binarize, seed, generator)
    if validate is False:
        losses = small.elbo(output, target, kl, beta, row, target_scale, weight, noise)
        if losses is not None:
            return ELBO(*losses)
    others = kl, beta if isinstance(beta, Tensor) else None
    key, kind = outputs.find(output, target, weight, others, row, None, target_scale, noise, validate)
    if kind is not None:
        params, *given = outputs.known(output, target, weight, row, noise)
        beta_tensor, number = _weight_of_kl(beta, target, params)
        return ELBO(*kind(params, *given, beta_tensor, kl, number))
    params = outputs.check(output, target, row)
    checks.kl(kl, target)
    beta_tensor, number = _weight_of_kl(beta, target, params)
    options = target_scale, weight, noise, validate
    if row.domain == "classes":
        weight = classes.prepare(target, params[0], row, *options)
        spec = categorical.Spec.of(row, "batchmean", backend.choose(target))
        kinds.keep(key, params, categorical.WholeKind, spec, params, target)
        return ELBO(*categorical.negative_elbo(*params, target, weight, kl, beta_tensor, number, spec))
    params, target, weight, seed, scale, chosen = outputs.prepare(params, target, row, *options)
    spec = elbo.Spec(scale, number, row.name, chosen)
    kinds.keep(key, (*params, kl), elbo.Kind, spec, params, target)
    return ELBO(*elbo.negative_elbo(params, target, weight, seed, beta_tensor, kl, spec))


def _weight_of_kl(beta, target, params):
    """(tensor or None, number) of a number or a 0-d tensor."""
    if small.is_weight(beta):  # nearly always
        return None, beta
    beta_tensor, number = checks.scalar("beta", beta, "target", target)
    return beta_tensor, checks.held(number, params[0].dtype)
