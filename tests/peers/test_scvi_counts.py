"""scvi-tools' likelihoods of counts, patched against its own: values and gradients, dtypes, what stays theirs."""

import copy
import inspect
import pickle
import sys
import warnings

import pytest
import torch

pytest.importorskip("scvi", reason="scvi-tools is not installed: make test-peers", exc_type=ModuleNotFoundError)

from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from scvi.distributions import _negative_binomial as module

from tests.peers.curves import goes_through_ours
from vae_fast.integrations import counts
from vae_fast.integrations import scvi as fast

NAMES = ("log_nb_positive", "log_zinb_positive")
MAKE = {
    "nb": lambda mu, theta, pi: NegativeBinomial(mu=mu, theta=theta),
    "zinb": lambda mu, theta, pi: ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi),
    "poisson": lambda mu, theta, pi: Poisson(mu),
}
SHAPES = [
    ((5, 7), (5, 7), (5, 7)),
    ((5, 7), (7,), (5, 7)),  # one dispersion a gene, as SCVI has by default
    ((5, 7), (1, 7), (5, 1)),
    ((3, 5, 7), (7,), (3, 5, 7)),  # several samples of z for one matrix of counts
]
kinds = pytest.mark.parametrize("kind", MAKE)


def problem(device, mu=(5, 7), theta=(7,), pi=(5, 7), dtype=torch.float32):
    """Counts [5, 7], a third of them 0, and mu, theta and pi."""
    generator = torch.Generator().manual_seed(4)
    x = torch.poisson(6 * torch.rand(5, 7, generator=generator), generator=generator)
    x[:, ::3] = 0
    raw = [torch.randn(shape, generator=generator) for shape in (mu, theta, pi)]
    params = [(raw[0] + 1).exp(), raw[1].exp(), raw[2]]
    return x.to(device, dtype), [p.to(device, dtype).requires_grad_() for p in params]


def log_prob(kind, x, params):
    return MAKE[kind](*params).log_prob(x)


def value_and_gradients(kind, x, params):
    made = log_prob(kind, x, params)
    weights = torch.linspace(1, 2, made.numel(), device=x.device).view(made.shape)
    return made, torch.autograd.grad((made * weights).sum(), params, allow_unused=True)


@kinds
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_prob_and_its_gradients(shapes, dtype, kind, backend):
    """Against theirs in float64, also where ours computes in float32."""
    x, params = problem(backend.device, *shapes, dtype=dtype)
    expected, gradients = value_and_gradients(kind, x.double(), [p.detach().double().requires_grad_() for p in params])
    with fast.patch():
        ours, our_gradients = value_and_gradients(kind, x, params)
    assert goes_through_ours(ours)
    assert ours.dtype == dtype
    # Theirs adds its 1e-8 to each logarithm's argument, ours to the mean: they differ by 1e-8 where theta is about 1.
    close = {"rtol": 1e-5, "atol": 3e-6} if dtype == torch.float32 else {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(ours.double(), expected, **close)
    for ours, theirs in zip(our_gradients, gradients):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-7)


THETAS = [1.0, 1e2, 1e4, 1e7]


def test_float32_stays_exact_where_theta_is_large(backend):
    """README's table: the largest error in nats of counts of 0 to 100 at means of 1, 10 and 50."""
    x, mu = torch.arange(101.0, device=backend.device), torch.tensor([[1.0], [10.0], [50.0]], device=backend.device)

    def errors(theta):
        params = mu, torch.full_like(mu, theta)
        exact = module.log_nb_positive(x.double(), *(p.double() for p in params))
        theirs = module.log_nb_positive(x, *params)
        with fast.patch():
            ours = module.log_nb_positive(x, *params)
        return [(log - exact).abs().max().item() for log in (theirs, ours)]

    theirs, ours = zip(*map(errors, THETAS))
    assert all(error < 2e-4 for error in ours)
    assert theirs[2] > 5e-3
    assert theirs[3] > 5


def test_extremes_are_theirs(backend):
    """Means, rates and dispersions of 0 and nearly 0; logits at which one of the two parts is all."""
    x = torch.tensor([[0.0, 1.0, 7.0]], device=backend.device)
    for size in (0.0, 1e-12, 1e-4):
        small = torch.full_like(x, size)
        for logit in (-40.0, 40.0):
            params = small, torch.full_like(x, 0.5), torch.full_like(x, logit)
            expected = {kind: log_prob(kind, x, params) for kind in MAKE}
            if not size:  # the least number instead of -inf
                expected["poisson"][0, 1] = torch.finfo(x.dtype).min
            with fast.patch():
                ours = {kind: log_prob(kind, x, params) for kind in MAKE}
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def their_own(name):
    """Calls that the fused op does not take: theirs computes, with theirs' result or error."""
    x, (mu, theta, pi) = problem("cpu", theta=(5, 7))
    params = (mu, theta) if name == "log_nb_positive" else (mu, theta, pi)
    yield x, params, {"eps": 1e-6}
    yield x, params, {"log_fn": lambda t: torch.log(t)}
    yield x, params, {"lgamma_fn": module.torch_lgamma_mps}
    yield x[0], [p[0] for p in params], {}  # one dimension
    yield x, (*params[:-1], torch.tensor(0.5)), {}  # none
    yield x.requires_grad_(), params, {}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_fused_op_does_not_take_is_theirs(name):
    original = getattr(module, name)
    for x, params, options in their_own(name):
        expected = original(x, *params, **options)
        with fast.patch():
            ours = getattr(module, name)(x, *params, **options)
        assert not goes_through_ours(ours)
        assert torch.equal(ours, expected)


def test_eps_can_be_positional(backend):
    x, params = problem(backend.device)
    expected = module.log_nb_positive(x, *params[:2], 1e-3, torch.log, torch.lgamma)
    with fast.patch():
        assert torch.equal(module.log_nb_positive(x, *params[:2], 1e-3, torch.log, torch.lgamma), expected)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_stay(name):
    """Also that of the function itself, which wraps() hides."""
    before = inspect.signature(getattr(module, name))
    with fast.patch():
        assert inspect.signature(getattr(module, name)) == before
        own = inspect.signature(getattr(module, name), follow_wrapped=False).parameters.values()
    assert [(p.name, p.default) for p in own] == [(p.name, p.default) for p in before.parameters.values()]


def test_shapes_that_do_not_fit_are_an_error_as_before(backend):
    x, params = problem(backend.device)
    with fast.patch(), pytest.raises(RuntimeError):
        module.log_nb_positive(x[:, :3], *params[:2])


def test_the_functions_are_held_where_they_are_patched_and_nowhere_else():
    """Else a name imported into another module would go on with the original."""
    import scvi.external
    import scvi.module

    originals = [vars(module)[name] for name in NAMES]
    loaded = [m for name, m in sys.modules.items() if name.partition(".")[0] == "scvi"]
    holders = {m.__name__ for m in loaded for value in list(vars(m).values()) if any(value is o for o in originals)}
    assert holders == {module.__name__}
    assert {scvi.module.__name__, scvi.external.__name__} <= {m.__name__ for m in loaded}


def test_unpatching_is_exact():
    before, poisson = dict(vars(module)), dict(vars(Poisson))
    assert "log_prob" not in poisson  # inherited from torch, whose own stays
    with fast.patch() as patch:
        own = "scvi.distributions._negative_binomial."
        assert patch.patched[1:] == (*(own + name for name in NAMES), f"{own}Poisson.log_prob")
        assert all(vars(module)[name] is not before[name] for name in NAMES)
        assert torch.distributions.Poisson.log_prob is not Poisson.log_prob
    for was, owner in ((before, module), (poisson, Poisson)):
        assert was.keys() == vars(owner).keys()
        assert all(vars(owner)[name] is value for name, value in was.items())


@kinds
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_and_pickles_are_theirs(copied, kind):
    x, params = problem("cpu")
    params = [p.detach() for p in params]
    expected = log_prob(kind, x, params)
    with fast.patch():
        inside = copied(MAKE[kind](*params))
        torch.testing.assert_close(inside.log_prob(x), expected)
        stored = pickle.dumps(inside)
    assert b"vae_fast" not in stored
    for outside in (inside, pickle.loads(stored)):
        assert torch.equal(outside.log_prob(x), expected)


@pytest.mark.parametrize("validate", [False, True])
@kinds
def test_validation_stays(kind, validate):
    """An error for Poisson, a warning for the others, as before: ZINB warns in any case."""
    x, params = problem("cpu")
    px = MAKE[kind](*params)
    px._validate_args = validate

    def outcome(compute):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                compute()
            except ValueError as error:
                return "error", str(error)
        return [str(w.message) for w in caught if w.category is UserWarning]

    expected = outcome(lambda: px.log_prob(x + 0.5))
    with fast.patch():
        assert outcome(lambda: px.log_prob(x + 0.5)) == expected
        assert outcome(lambda: counts.summed_over_genes(px).log_prob(x + 0.5).sum(-1)) == expected
    assert bool(expected) == (validate or kind == "zinb")


@kinds
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_the_sum_over_genes(shapes, kind, backend):
    """One pass for a matrix; for more dimensions, and for any other sum, log_prob's."""
    x, params = problem(backend.device, *shapes)
    expected = log_prob(kind, x, params).sum(-1)
    with fast.patch():
        stands = counts.summed_over_genes(MAKE[kind](*params))
        ours = stands.log_prob(x).sum(-1)
        torch.testing.assert_close(stands.log_prob(x).sum(), expected.sum())
        torch.testing.assert_close(stands.log_prob(x).sum(dim=0), log_prob(kind, x, params).sum(0))
        assert stands.log_prob(x).shape == (*expected.shape, 7)
    assert goes_through_ours(ours)
    torch.testing.assert_close(ours, expected)
    assert stands.mean is not None


def test_only_their_own_types_are_stood_for(backend):
    class Own(NegativeBinomial):
        pass

    _, (mu, theta, _) = problem(backend.device)
    for value in (Own(mu=mu, theta=theta), torch.distributions.Poisson(mu), mu, None):
        assert counts.summed_over_genes(value) is value


@kinds
def test_a_sum_with_other_options_is_theirs(kind):
    x, params = problem("cpu")
    with fast.patch():
        stands = counts.summed_over_genes(MAKE[kind](*params))
        assert stands.log_prob(x).sum(-1, keepdim=True).shape == (5, 1)
        assert stands.log_prob(x).sum(-1, dtype=torch.float64).dtype == torch.float64


def test_another_eps_of_a_distribution_is_theirs():
    x, params = problem("cpu")
    px = MAKE["nb"](*params)
    px._eps = 1e-2
    expected = px.log_prob(x).sum(-1)
    with fast.patch():
        torch.testing.assert_close(counts.summed_over_genes(px).log_prob(x).sum(-1), expected)
