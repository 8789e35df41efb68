"""What the functions of the latents say of bad arguments: each argument, each kind of wrongness."""

import numpy as np
import pytest
import torch

from tests.inputs.refusals import FLOATS, not_floats, not_tensors, refuses, zeros
from vae_fast import DiagonalGaussian, SoftClamp, Softplus, gaussian_kl, reparameterize, sample_kl, sample_kl_packed

POSTERIOR = [sample_kl, reparameterize, gaussian_kl, DiagonalGaussian]
SAMPLERS = [
    ("sample_kl", lambda **noise: sample_kl(zeros(4, 3), zeros(4, 3), **noise)),
    ("packed", lambda **noise: sample_kl_packed(zeros(4, 6), **noise)),
    ("reparameterize", lambda **noise: reparameterize(zeros(4, 3), zeros(4, 3), **noise)),
    ("rsample", lambda **noise: DiagonalGaussian(zeros(4, 3), zeros(4, 3)).rsample(**noise)),
    ("sample", lambda **noise: DiagonalGaussian(zeros(4, 3), zeros(4, 3)).sample(**noise)),
    ("object's sample_kl", lambda **noise: DiagonalGaussian.from_moments(zeros(4, 6)).sample_kl(**noise)),
]
DIVERGENCES = [
    ("sample_kl", lambda **options: sample_kl(zeros(4, 3), zeros(4, 3), **options)),
    ("packed", lambda **options: sample_kl_packed(zeros(4, 6), **options)),
    ("gaussian_kl", lambda **options: gaussian_kl(zeros(4, 3), zeros(4, 3), **options)),
    ("object's kl", lambda **options: DiagonalGaussian(zeros(4, 3), zeros(4, 3)).kl(**options)),
    ("object's sample_kl", lambda **options: DiagonalGaussian(zeros(4, 3), zeros(4, 3)).sample_kl(**options)),
]
posterior = pytest.mark.parametrize("function", POSTERIOR)
sampler = pytest.mark.parametrize("call", [c for _, c in SAMPLERS], ids=[n for n, _ in SAMPLERS])
divergence = pytest.mark.parametrize("call", [c for _, c in DIVERGENCES], ids=[n for n, _ in DIVERGENCES])


@posterior
def test_mu(function):
    good = zeros(4, 3)
    for value, name in not_tensors():
        refuses(TypeError, f"mu is {name}: expected a tensor", function, value, good)
    for dtype, name in not_floats():
        message = f"mu is {name}: expected {FLOATS} values"
        refuses(TypeError, message, function, zeros(4, 3, dtype=dtype), good)
    message = "mu has shape []: expected [B, ...] with the batch in dimension 0"
    refuses(ValueError, message, function, zeros(), zeros())
    message = "mu has layout torch.sparse_coo: expected a dense (strided) tensor"
    refuses(TypeError, message, function, good.to_sparse(), good)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@posterior
def test_logvar(function):
    good = zeros(4, 3)
    for value, name in not_tensors():
        refuses(TypeError, f"logvar is {name}: expected a tensor", function, good, value)
    for dtype, name in not_floats():
        message = f"logvar is {name}: expected {FLOATS} values"
        refuses(TypeError, message, function, good, zeros(4, 3, dtype=dtype))
    for shape in ((4, 5), (3, 4), (4, 1), (1, 3), (3,), (4, 3, 1), (0, 3)):
        message = f"logvar has shape {list(shape)}, mu has [4, 3]: they must be equal"
        refuses(ValueError, message, function, good, zeros(*shape))
    for mu, logvar in ((good, good.double()), (good.double(), good)):
        names = [str(t.dtype).removeprefix("torch.") for t in (logvar, mu)]
        message = "logvar is {}, mu is {}: expected float64 for both or for neither".format(*names)
        refuses(TypeError, message, function, mu, logvar)
    message = "logvar is on meta, mu is on cpu: they must be on one device"
    refuses(ValueError, message, function, good, zeros(4, 3, device="meta"))
    message = "logvar has layout torch.sparse_csr: expected a dense (strided) tensor"
    refuses(TypeError, message, function, good, good.to_sparse_csr())


@pytest.mark.parametrize("function", [sample_kl_packed, DiagonalGaussian.from_moments])
def test_moments(function):
    for value, name in not_tensors():
        refuses(TypeError, f"moments is {name}: expected a tensor", function, value)
    for dtype, name in not_floats():
        refuses(TypeError, f"moments is {name}: expected {FLOATS} values", function, zeros(4, 6, dtype=dtype))
    message = "moments has layout torch.sparse_coo: expected a dense (strided) tensor"
    refuses(TypeError, message, function, zeros(4, 6).to_sparse())
    for shape in ((), (6,)):
        message = f"moments has shape {list(shape)}: expected [B, ...] with mu and logvar along dim 1"
        refuses(ValueError, message, function, zeros(*shape))
    message = "moments has size 5 along dim 1: expected an even size, mu and then logvar"
    refuses(ValueError, message, function, zeros(4, 5))
    message = "moments has size 3 along dim -1: expected an even size, mu and then logvar"
    refuses(ValueError, message, function, zeros(4, 6, 3), -1)


@pytest.mark.parametrize("function", [sample_kl_packed, DiagonalGaussian.from_moments])
def test_dim(function):
    for dim in (0, 2, -2, -3, 10**30):
        message = f"dim is {dim}: expected a dimension of moments [4, 6] other than the batch's, 0"
        refuses(ValueError, message, function, zeros(4, 6), dim)
    for dim, name in ((True, "bool"), (1.0, "float"), ("1", "str"), (None, "NoneType"), ((1,), "tuple")):
        refuses(TypeError, f"dim is {name}: expected an int", function, zeros(4, 6), dim)


def test_a_dim_of_numpy():
    made = sample_kl_packed(torch.ones(4, 6), np.int64(-1), seed=0)
    torch.testing.assert_close(made, sample_kl_packed(torch.ones(4, 6), -1, seed=0))


@divergence
def test_prior(call):
    good = zeros(4, 3)
    tuple_of = "expected a tuple (mu, logvar) of tensors"
    for value, name in ((good, "Tensor"), (0.0, "float"), ("normal", "str"), ((good,), "tuple of 1"),
                        ((good,) * 3, "tuple of 3"), ([], "list of 0"), ({"mu": good}, "dict")):  # fmt: skip
        refuses(TypeError, f"prior is {name}: {tuple_of}", call, prior=value)
    for index, which in enumerate(("prior mu", "prior logvar")):

        def prior(bad, index=index):
            return (bad, good) if index == 0 else (good, bad)

        refuses(TypeError, f"{which} is NoneType: expected a tensor", call, prior=prior(None))
        refuses(TypeError, f"{which} is float: expected a tensor", call, prior=prior(0.0))
        message = f"{which} is int64: expected {FLOATS} values"
        refuses(TypeError, message, call, prior=prior(zeros(4, 3, dtype=torch.int64)))
        message = f"{which} is float64, mu is float32: expected float64 for both or for neither"
        refuses(TypeError, message, call, prior=prior(good.double()))
        message = f"{which} is on meta, mu is on cpu: they must be on one device"
        refuses(ValueError, message, call, prior=prior(zeros(4, 3, device="meta")))
        message = f"{which} has layout torch.sparse_coo: expected a dense (strided) tensor"
        refuses(TypeError, message, call, prior=prior(good.to_sparse()))
        for shape in ((4,), (2, 3), (4, 2), (1, 4, 3), (5, 1)):
            message = f"{which} has shape {list(shape)}: expected one that expands to [4, 3], that of mu"
            refuses(ValueError, message, call, prior=prior(zeros(*shape)))


OF_A_POSTERIOR = pytest.mark.parametrize("call", [
    *(c for _, c in SAMPLERS[:3]), DIVERGENCES[2][1],
    lambda **options: DiagonalGaussian(zeros(4, 3), zeros(4, 3), **options),
    lambda **options: DiagonalGaussian.from_moments(zeros(4, 6), **options),
])  # fmt: skip


@OF_A_POSTERIOR
def test_logvar_clamp(call):
    for value in (5, "ab", (1,), (1, 2, 3), (None, 5), ("a", "b"), (True, 2), [0], {0, 1}, (torch.zeros(()), 1)):
        message = f"logvar_clamp is {value!r}: expected a tuple (low, high) of numbers"
        refuses(TypeError, message, call, logvar_clamp=value)
    for value in ((2, 1), (0.0, float("nan")), (float("nan"), 0.0)):
        refuses(ValueError, f"logvar_clamp is {value!r}: expected low <= high", call, logvar_clamp=value)


@pytest.mark.parametrize("value", [(-30, 20), [-30.0, 20], (0, 0), (-float("inf"), float("inf")), (0, np.float64(1))])
def test_logvar_clamps_that_are_fine(value):
    logvar = torch.linspace(-40, 40, 12).view(4, 3)
    torch.testing.assert_close(
        gaussian_kl(zeros(4, 3), logvar, logvar_clamp=value),
        gaussian_kl(zeros(4, 3), logvar.clamp(*map(float, value))),
    )


@OF_A_POSTERIOR
def test_scale(call):
    end = "expected one of 'logvar', 'logstd', 'std', 'softplus', a Softplus or a SoftClamp"
    for value in ("variance", "", None, 1.0, 1e-4, ["std"], Softplus, zeros()):
        refuses(ValueError, f"scale is {value!r}: {end}", call, scale=value)


@OF_A_POSTERIOR
def test_a_clamp_of_log_variances_on_another_scale(call):
    for value in ("logstd", "std", "softplus", SoftClamp()):
        message = f"logvar_clamp was given with scale {value!r}: expected scale 'logvar', or no clamp"
        refuses(ValueError, message, call, scale=value, logvar_clamp=(-30, 20))


@pytest.mark.parametrize("make", [lambda value: Softplus(value), lambda value: SoftClamp(5.0, value)])
def test_epsilon(make):
    for value, name in (("a", "str"), (None, "NoneType"), (True, "bool"), (zeros(1), "Tensor")):
        refuses(TypeError, f"epsilon is {name}: expected a number", make, value)
    for value in (-1e-4, float("nan"), float("inf")):
        refuses(ValueError, f"epsilon is {value}: expected a finite number >= 0", make, value)


def test_bound():
    for value, name in (("a", "str"), (None, "NoneType"), (True, "bool")):
        refuses(TypeError, f"bound is {name}: expected a number", SoftClamp, value)
    for value in (0, -5.0, float("nan"), float("inf")):
        refuses(ValueError, f"bound is {value}: expected a finite number > 0", SoftClamp, value)


@pytest.mark.parametrize("call", [c for _, c in SAMPLERS[:2]])
def test_kl(call):
    for value in ("monte carlo", "", None, True, ["monte_carlo"]):
        message = f"kl is {value!r}: expected one of 'closed_form', 'monte_carlo'"
        refuses(ValueError, message, call, kl=value)


@pytest.mark.parametrize("call", [c for _, c in SAMPLERS[:3]])
def test_num_samples(call):
    for value, name in ((1.0, "float"), ("1", "str"), (True, "bool"), ((2,), "tuple")):
        refuses(TypeError, f"num_samples is {name}: expected an int", call, num_samples=value)
    for value in (0, -1):
        refuses(ValueError, f"num_samples is {value}: expected 1 or more", call, num_samples=value)
    for shape in ((4, 3), (2, 4, 3), (3, 4, 1)):
        message = f"eps has shape {list(shape)}: expected [3, 4, 3], num_samples times mu's shape"
        refuses(ValueError, message, call, num_samples=3, eps=zeros(*shape))
    for value, name in not_tensors()[1:]:
        refuses(TypeError, f"eps is {name}: expected a tensor", call, num_samples=3, eps=value)


@divergence
def test_reduction(call):
    choices = "'none', 'sample', 'latent', 'sum', 'mean', 'batchmean'"
    for value in ("average", "", "Sum", None, 0, True, ["sum"], ("sum",), np.array("sum"), zeros()):
        refuses(ValueError, f"reduction is {value!r}: expected one of {choices}", call, reduction=value)


@sampler
def test_seed(call):
    for value, name in ((1.0, "float"), ("1", "str"), (True, "bool"), ([1], "list"), (1j, "complex")):
        message = f"seed is {name}: expected an int or an int64 tensor of one element"
        refuses(TypeError, message, call, seed=value)
    for value in (-(2**63) - 1, 2**64, 10**30):
        refuses(ValueError, f"seed is {value}: expected an int in [-2^63, 2^64)", call, seed=value)
    for dtype in (torch.int32, torch.float32, torch.bool, torch.uint8):
        name = str(dtype).removeprefix("torch.")
        refuses(TypeError, f"seed is {name}: expected int64", call, seed=zeros(1, dtype=dtype))
    for shape in ((0,), (2,), (4, 3)):
        message = f"seed has shape {list(shape)}: expected one element"
        refuses(ValueError, message, call, seed=zeros(*shape, dtype=torch.int64))
    message = "seed is on meta, mu is on cpu: they must be on one device"
    refuses(ValueError, message, call, seed=zeros(1, dtype=torch.int64, device="meta"))


@sampler
def test_generator(call):
    for value, name in ((0, "int"), ("cpu", "str"), (torch.default_generator.get_state(), "Tensor"),
                        (np.random.default_rng(0), "Generator")):  # fmt: skip
        refuses(TypeError, f"generator is {name}: expected torch.Generator", call, generator=value)
    if torch.cuda.is_available():
        message = "generator is on cuda:0, mu is on cpu: they must be on one device"
        refuses(ValueError, message, call, generator=torch.Generator("cuda:0"))


@sampler
def test_eps(call):
    for value, name in not_tensors()[1:]:
        refuses(TypeError, f"eps is {name}: expected a tensor", call, eps=value)
    for dtype, name in not_floats():
        refuses(TypeError, f"eps is {name}: expected {FLOATS} values", call, eps=zeros(4, 3, dtype=dtype))
    for shape in ((), (4,), (4, 1), (3, 4), (4, 6)):
        message = f"eps has shape {list(shape)}, mu has [4, 3]: they must be equal"
        refuses(ValueError, message, call, eps=zeros(*shape))
    message = "eps is on meta, mu is on cpu: they must be on one device"
    refuses(ValueError, message, call, eps=zeros(4, 3, device="meta"))
    message = "eps requires a gradient, which is not made: expected one that does not, detached if none is needed"
    refuses(ValueError, message, call, eps=zeros(4, 3).requires_grad_())
    message = "eps has layout torch.sparse_coo: expected a dense (strided) tensor"
    refuses(TypeError, message, call, eps=zeros(4, 3).to_sparse())


@sampler
def test_one_source_of_noise(call):
    options = {"seed": 1, "generator": torch.Generator(), "eps": zeros(4, 3)}
    end = "were given: expected at most one of seed, generator and eps"
    for left_out in options:
        names = [name for name in options if name != left_out]
        refuses(ValueError, f"{' and '.join(names)} {end}", call, **{name: options[name] for name in names})
    refuses(ValueError, f"seed and generator and eps {end}", call, **options)


@pytest.mark.parametrize("what", ["eps", "prior mu"])
def test_a_gradient_in_an_argument_that_has_none_is_refused_under_torch_func(what):
    """A gradient of zero would be silently wrong."""
    mu = zeros(4, 3)
    if what == "eps":
        with pytest.raises(ValueError, match="eps requires a gradient"):
            torch.func.grad(lambda eps: sample_kl(mu, mu, eps=eps)[0].sum())(mu)
    else:
        gradient = torch.func.grad(lambda m: gaussian_kl(mu, mu, prior=(m, mu)))(mu + 1)
        torch.testing.assert_close(gradient, torch.full((4, 3), 0.25))


@pytest.mark.parametrize("call", [
    lambda: sample_kl(zeros(4, 3), zeros(4, 3), None),
    lambda: reparameterize(zeros(4, 3), zeros(4, 3), prior=None),
    lambda: gaussian_kl(zeros(4, 3), zeros(4, 3), seed=0),
])  # fmt: skip
def test_keyword_only_arguments_and_unknown_ones_are_pythons_errors(call):
    with pytest.raises(TypeError, match="positional argument|unexpected keyword"):
        call()
