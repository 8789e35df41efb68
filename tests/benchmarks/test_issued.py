"""Which of the numbers `ISSUED...` beside the kernels make the limit of a launch: each from calls that ask for it.

The audit itself notices a number that is left out, but not one too many.
"""

import pytest

pytest.importorskip("triton")

from vae_fast.kernels import categorical, latent_backward, latent_forward, likelihoods, shared, targets, tiling
from vae_fast.kernels.upstreams import ISSUED_SCALE, ISSUED_SCALE_WIDE

pytestmark = pytest.mark.compiled_only

LAYOUT, TARGET, SHARED = tiling.ISSUED, targets.ISSUED, shared.ISSUED
BERNOULLI, MSE, GAUSSIAN = (likelihoods.ISSUED[name] for name in ("bernoulli", "mse", "gaussian"))
ROWS = LAYOUT["rows"]


def _of(kernel, scale, *parts):
    """(The sum of what is asked for, what the scale adds to the sample and to each KL)."""
    return sum(kernel.ISSUED[part] for part in parts), kernel.ISSUED_SCALES[scale]


def forward(*parts, scale="logvar"):
    return _of(latent_forward, scale, "tensors", *parts)


def backward(*parts, scale="logvar"):
    return _of(latent_backward, scale, "tensors", *parts)


SAMPLE = "sample", "noise"
MONTE_CARLO, CLOSED = "monte_carlo", "closed_form"

LATENT = {  # call: (what it asks for, the KL, how often its scale counts, what the layout adds)
    "reparameterize, eps, float32, rows: forward": (forward("sample"), None, 1, 0),
    "reparameterize, 5 samples, float32, rows: forward": (forward(*SAMPLE, "samples"), None, 1, 0),
    "gaussian_kl, batchmean, clamp, float32, rows: forward": (forward(CLOSED, "clamp"), CLOSED, 1, 0),
    # a sum over samples is one for each column, though rows count as one elsewhere
    "gaussian_kl, latent, float32, rows: forward": (forward(CLOSED), CLOSED, 1, ROWS),
    "sample_kl, sample, float32, rows: forward": (forward(*SAMPLE, CLOSED), CLOSED, 1, ROWS),
    "sample_kl, sample, more than 2^31 elements: forward": (
        forward(*SAMPLE, CLOSED), CLOSED, 1, ROWS + LAYOUT["wide"],
    ),
    "sample_kl, sample, bfloat16, rows: forward": (forward(*SAMPLE, CLOSED), CLOSED, 1, ROWS + 3 * LAYOUT["half"]),
    "sample_kl, sample, learned prior, softplus, float32, rows: forward": (
        forward(*SAMPLE, CLOSED, "prior", scale="softplus"), CLOSED, 2, ROWS,  # the scale of the prior too
    ),
    "reparameterize, SoftClamp(bound=5.0, epsilon=0.0), float32, rows: forward": (
        forward(*SAMPLE, scale="soft_clamp"), None, 1, 0,
    ),
    "sample_kl, sample, SoftClamp(bound=5.0, epsilon=0.01), monte_carlo, float32, rows: forward": (
        forward(*SAMPLE, MONTE_CARLO, scale="soft_clamp with epsilon"), MONTE_CARLO, 1, ROWS,
    ),
    "sample_kl, sample, bfloat16, rows: backward": (  # the noise is drawn again; the kl's gradient is float32
        backward(*SAMPLE, CLOSED), CLOSED, 1, ROWS + 5 * LAYOUT["half"] + LAYOUT["mixed"],
    ),
    "sample_kl, sample, fixed prior, float32, rows: backward": (backward(*SAMPLE, CLOSED, "prior"), CLOSED, 2, ROWS),
    "sample_kl, sample, learned prior, softplus, monte_carlo, float32, rows: backward": (
        backward(*SAMPLE, MONTE_CARLO, "prior", "gradient of the prior", scale="softplus"), MONTE_CARLO, 2, ROWS,
    ),
    "sample_kl, sample, 5 samples, float32, rows: backward": (
        backward(*SAMPLE, CLOSED, "samples"), CLOSED, 1, ROWS,
    ),
    "sample_kl, sample, only z used, float32, rows: backward": (backward(*SAMPLE), None, 1, 0),
    "sample_kl, sample, only kl used, float32, rows: backward": (backward(CLOSED), CLOSED, 1, ROWS),
    # of z alone the prior is no part; of the kl alone the noise is one for monte_carlo only, and so are the samples
    "sample_kl, batchmean, fixed prior, clamp, only z used, bfloat16 beside mu, float16, 20 columns: backward": (
        backward(*SAMPLE, "clamp"), None, 1, 6 * LAYOUT["half"],
    ),
    "sample_kl, sum, learned prior, clamp, monte_carlo, only kl used, float32 beside mu, bfloat16, "
    "chunks of channels_last: backward": (
        backward(*SAMPLE, MONTE_CARLO, "prior", "gradient of the prior", "clamp"), MONTE_CARLO, 2,
        ROWS + 2 * LAYOUT["half"] + LAYOUT["mixed"] + LAYOUT["dimension"],
    ),
    "sample_kl, sum, prior of one row, logstd, 5 samples, eps, only kl used, float32 beside mu, float16, "
    "chunks of images: backward": (
        backward(CLOSED, "prior", "gradient of the prior", scale="logstd"), CLOSED, 2,
        ROWS + 3 * LAYOUT["half"] + LAYOUT["mixed"],
    ),
}  # fmt: skip

RECONSTRUCTION = {  # what follows "reconstruction_loss, ", and is one launch of the kernel
    "mse, none, float32, rows: forward": MSE.each,
    "gaussian, batchmean, 0 of 2 gradients, float32, rows: forward": GAUSSIAN.sum,
    "gaussian, batchmean, float32, rows: forward": GAUSSIAN.both,
    "bernoulli, none, float32, rows: backward": BERNOULLI.gradient,
    "bernoulli, batchmean, uint8 target, bfloat16, rows: forward": (
        BERNOULLI.both + TARGET["integers"] + TARGET["scale"] + 2 * LAYOUT["half"] + LAYOUT["mixed"]
    ),
    "mse, batchmean, target_scale, float32, rows: forward": MSE.both + TARGET["scale"],
    "bernoulli, batchmean, binarize, float32, rows: forward": BERNOULLI.both + TARGET["binarize"],
    # a logarithm for each element, where the kernel takes one of a product otherwise
    "bernoulli, batchmean, weight an element, float32, rows: forward": (
        BERNOULLI.both + TARGET["weight"] + BERNOULLI.each - BERNOULLI.sum
    ),
    "gaussian, batchmean, weight an element, float32, rows: forward": GAUSSIAN.both + TARGET["weight"],
    "bernoulli, none, weight a sample, float32, rows: forward": BERNOULLI.each + TARGET["weight"] + ROWS,
    "mse, batchmean, mask, float32, rows: forward": (
        MSE.both + max(MSE.each - MSE.sum, 0) + TARGET["weight"] + TARGET["integers"] + LAYOUT["mixed"]
    ),
    "mse, batchmean, weight a feature, float32, rows: forward": (
        MSE.both + TARGET["weight"] + TARGET["weight of rows"] + ROWS
    ),
    "continuous_bernoulli, sample, uint8 target, 0 of 1 gradients, mask, bfloat16, long rows: forward": (
        likelihoods.ISSUED["continuous_bernoulli"].sum
        + TARGET["scale"]
        + TARGET["weight"]
        + 2 * TARGET["integers"]
        + ROWS
        + LAYOUT["half"]
        + LAYOUT["mixed"]
    ),
    "gaussian, batchmean, one number, float32, rows: forward": GAUSSIAN.both + SHARED["one number"],
    "gaussian, batchmean, a number a feature, float32, rows: forward": GAUSSIAN.both + SHARED["columns"],
    "gaussian, none, a number a feature, bfloat16, rows: backward": (
        GAUSSIAN.gradient + SHARED["columns"] + 4 * LAYOUT["half"] + LAYOUT["mixed"]
    ),
    "negative_binomial, batchmean, a number a feature, float32 beside the first, bfloat16, rows: forward": (
        likelihoods.ISSUED["negative_binomial"].both
        + SHARED["columns of one row"]
        + 3 * LAYOUT["half"]
        + LAYOUT["mixed"]
    ),
    "gaussian, batchmean, a number a channel, float32, chunks of images: forward": (
        GAUSSIAN.both + SHARED["dimensions"] + LAYOUT["dimension"]
    ),
}

OF_A_ROW = categorical.ISSUED_ELEMENT

CLASSES = {  # likewise: per logit, and the row's own over those of its logits that a thread has
    "batchmean, float32, rows: forward": categorical.ISSUED.both + OF_A_ROW / 8,
    "batchmean, float32, rows: again": categorical.ISSUED.gradient + OF_A_ROW / 8,
    "batchmean, 0 of 1 gradients, float32, rows: forward": categorical.ISSUED.sum + OF_A_ROW / 8,
    "none, float32, rows: forward": categorical.ISSUED.each + OF_A_ROW / 8,
    "batchmean, float32, long rows: forward": categorical.ISSUED.both + OF_A_ROW / 32,  # a thread has no more at once
    "batchmean, float32, chunks of images: forward": categorical.ISSUED.both + OF_A_ROW / 4,  # 16 bytes: no fewer
    "batchmean, 0 of 1 gradients, bfloat16, chunks of images: forward": (
        categorical.ISSUED.sum + OF_A_ROW / 8 + LAYOUT["half"]  # of halves twice as many
    ),
    "batchmean, float32, 20 columns: forward": (
        categorical.ISSUED_PACKED.both + categorical.ISSUED_PACKED_ROW / 32  # of lanes: a power of two
    ),
    "batchmean, more than 2^31 logits: forward": (
        categorical.ISSUED_PASSES.both + OF_A_ROW / 32 + LAYOUT["wide"]
    ),
}  # fmt: skip

SCALED = {
    "bernoulli, batchmean, float32, rows: backward": ISSUED_SCALE,
    "gaussian, batchmean, bfloat16, rows: backward": 2 * (ISSUED_SCALE + LAYOUT["half"]),
    "mse, batchmean, more than 2^31 elements: backward": ISSUED_SCALE_WIDE + LAYOUT["wide"],
}


def limits(call, kernel=""):
    """Of each launch of one call, unless it has none."""
    from vae_fast.benchmarks import audit_table

    launches = {each.launch for each in audit_table.recorded() if each.call == call and kernel in each.launch.name}
    assert launches, call
    found = (audit_table.issued_limit(launch, audit_table._operands(launch)) for launch in launches)
    return [limit for limit in found if limit is not None]


@pytest.mark.parametrize("call", LATENT)
def test_latents(call):
    (parts, of_scale), kl, times, layout = LATENT[call]
    assert limits(call) == [pytest.approx(parts + times * of_scale[kl] + layout)]


@pytest.mark.parametrize("call", RECONSTRUCTION)
def test_reconstructions(call):
    assert limits(f"reconstruction_loss, {call}", "_reconstruct") == [pytest.approx(RECONSTRUCTION[call])]


@pytest.mark.parametrize("call", CLASSES)
def test_classes(call):
    assert limits(f"reconstruction_loss, categorical, {call}") == [pytest.approx(CLASSES[call])]


@pytest.mark.parametrize("call", SCALED)
def test_gradients_that_are_scaled(call):
    assert limits(f"reconstruction_loss, {call}", "_scale") == [pytest.approx(SCALED[call])]


@pytest.mark.parametrize(
    "call",
    [
        "reparameterize, float64, rows: forward",  # for checking gradients
        "reparameterize, 5 samples, eps, float32, rows: forward",  # a short loop, unrolled or not
        "reparameterize, 5 samples, eps, float32, rows: backward",
    ],
)
def test_calls_without_a_limit(call):
    assert limits(call) == []
