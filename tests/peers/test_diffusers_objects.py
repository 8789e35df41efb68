"""What users do with patched posteriors besides computing: attributes, pickle, copies, compile, unpatching."""

import copy
import pickle

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: make test-peers", exc_type=ModuleNotFoundError)

from diffusers.models.autoencoders import autoencoder_oobleck, vae

from vae_fast.integrations import diffusers as fast

CLASSES = [vae.DiagonalGaussianDistribution, autoencoder_oobleck.OobleckDiagonalGaussianDistribution]
ATTRIBUTES = {
    CLASSES[0]: {"parameters", "mean", "logvar", "deterministic", "std", "var"},
    CLASSES[1]: {"parameters", "mean", "scale", "std", "var", "logvar", "deterministic"},
}
pytestmark = pytest.mark.parametrize("cls", CLASSES, ids=["image", "audio"])


def make(cls, seed=0, **options):
    shape = (2, 8, 4, 4) if cls is CLASSES[0] else (2, 8, 6)
    parameters = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return cls(parameters.requires_grad_(options.pop("gradient", False)), **options)


def assert_complete_and_equal(posterior, expected):
    """All attributes are the instance's own, none is ours, and the values are diffusers'."""
    assert vars(posterior).keys() == ATTRIBUTES[type(posterior)] == vars(expected).keys()
    for name, value in vars(expected).items():
        torch.testing.assert_close(vars(posterior)[name], value)


def test_the_originals_come_back(cls):
    before = dict(vars(cls))
    with fast.patch() as patch:
        assert vars(cls)["__init__"] is not before["__init__"]
        assert f"{cls.__module__}.{cls.__name__}.kl" in patch.patched
    assert dict(vars(cls)) == before
    assert all(vars(cls)[name] is value for name, value in before.items())


def test_std_and_var_are_made_when_read(cls):
    expected = make(cls)
    with fast.patch():
        posterior = make(cls)
        assert isinstance(posterior, cls)
        assert not {"std", "var", "logvar"} & vars(posterior).keys()
        for name in ("std", "var", "logvar"):
            assert hasattr(posterior, name)
            assert getattr(posterior, name) is getattr(posterior, name)
            torch.testing.assert_close(getattr(posterior, name), getattr(expected, name))
        assert posterior.mode() is posterior.mean


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_reading_under_no_grad_does_not_cut_the_gradient(guard, cls):
    with fast.patch():
        posterior = make(cls, gradient=True)
        with guard():
            for name in ("std", "var", "logvar"):
                getattr(posterior, name)
        for name in ("std", "var", "logvar"):
            (gradient,) = torch.autograd.grad(getattr(posterior, name).sum(), posterior.parameters, retain_graph=True)
            assert gradient.any()


def test_a_posterior_made_under_no_grad_has_the_gradients_it_had(cls):
    """None for the leaf, though the mean, as a view of it, says that it requires one."""

    def gradients():
        leaf = make(cls, gradient=True).parameters
        with torch.no_grad():
            posterior = cls(leaf)
        values = posterior.kl().sum(), posterior.sample(torch.Generator().manual_seed(0)).sum()
        made = [torch.autograd.grad(value, leaf, allow_unused=True)[0] for value in values]
        return made, posterior.mean.requires_grad, posterior.std.requires_grad, posterior.var.requires_grad

    expected = gradients()
    with fast.patch():
        torch.testing.assert_close(gradients(), expected)


def test_inference_mode(cls):
    with torch.inference_mode():
        expected = make(cls)
        with fast.patch():
            posterior = make(cls)
            torch.testing.assert_close(posterior.kl(), expected.kl())
            posterior.sample()
    torch.testing.assert_close(posterior.std, expected.std)


def test_values_that_were_set_are_used(cls):
    """As diffusers: std is what sample() takes, var and logvar what kl() takes."""

    def change(name):
        posterior = make(cls)
        setattr(posterior, name, torch.full_like(posterior.mean, 0.25))
        generator = torch.Generator().manual_seed(0)
        other = make(cls, seed=1)
        return posterior.sample(generator), posterior.kl(), posterior.kl(other), other.kl(posterior)

    for name in ("mean", "std", "var", "logvar"):
        expected = change(name)
        with fast.patch():
            torch.testing.assert_close(change(name), expected)


def test_values_are_the_same_whatever_was_read_before(cls):
    with fast.patch():
        fresh, read = make(cls), make(cls)
        assert read.std is not None
        assert read.var is not None
        assert read.logvar is not None
        torch.testing.assert_close(read.kl(), fresh.kl())
        samples = [p.sample(torch.Generator().manual_seed(0)) for p in (read, fresh)]
        torch.testing.assert_close(*samples)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_and_pickles_are_complete(copied, cls):
    expected = make(cls)
    with fast.patch():
        inside = copied(make(cls))
        assert type(inside) is cls
        assert_complete_and_equal(inside, expected)  # nothing of ours, for a process that has no patch
        torch.testing.assert_close(inside.kl(), expected.kl())
    torch.testing.assert_close(inside.kl(), expected.kl())


def test_a_pickle_made_before_the_patch_is_read_in_it(cls):
    expected = make(cls)
    stored = pickle.dumps(expected)
    with fast.patch():
        for posterior in (pickle.loads(stored), expected):
            draws = [posterior.sample(torch.Generator().manual_seed(0)) for _ in range(2)]
            assert torch.equal(*draws)
            torch.testing.assert_close(posterior.kl(), make(cls).kl())


def test_posteriors_outlive_the_patch(cls):
    expected = make(cls)
    with fast.patch():
        posterior = make(cls)
    assert_complete_and_equal(posterior, expected)
    torch.testing.assert_close(posterior.kl(), expected.kl())


def test_subclasses_are_patched_too(cls):
    class Own(cls):
        def __init__(self, parameters):
            super().__init__(parameters)
            self.doubled = 2 * self.std

    with fast.patch():
        posterior = Own(make(cls).parameters)
        torch.testing.assert_close(posterior.doubled, 2 * make(cls).std)
        torch.testing.assert_close(posterior.kl(), make(cls).kl())
    assert type(posterior) is Own
    assert "var" in vars(posterior)


def test_torch_compile_without_a_graph_break(cls):
    def loss(parameters):
        posterior = cls(parameters)
        return posterior.kl().sum() + posterior.std.sum()

    parameters = make(cls).parameters
    with fast.patch():
        expected = loss(parameters)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(parameters), expected)


def test_what_was_compiled_under_the_patch_runs_without_it(cls):
    """Dynamo does not ask whether a class has another __init__."""
    torch._dynamo.reset()
    encode = torch.compile(lambda parameters: cls(parameters), backend="eager")
    parameters = make(cls).parameters
    with fast.patch():
        encode(parameters)
    assert_complete_and_equal(encode(parameters), make(cls))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:DeprecationWarning")
def test_tracing(cls):
    """Which calls a second time, without gradients, and compares the graphs."""

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            posterior = cls(self.weight * x)
            return posterior.mode(), posterior.std

    encoder, x = Encoder(), make(cls).parameters
    expected = encoder(x + 1)
    with fast.patch():
        traced = torch.jit.trace(encoder, x)
    torch.testing.assert_close(traced(x + 1), expected)


def test_a_posterior_that_cannot_be_completed_does_not_keep_the_patch(cls, caplog):
    """As one that has left a vmap: what is no more is said, and the user's own error is the one that is raised."""

    def leave(parameters):
        left.append(cls(parameters))
        raise ValueError("the user's")

    left, before = [], vars(cls)["__init__"]
    patch = fast.patch()
    kept = make(cls)
    with pytest.raises(ValueError, match="the user's"), patch:
        torch.func.vmap(leave)(make(cls).parameters[None])
    assert vars(cls)["__init__"] is before
    assert_complete_and_equal(kept, make(cls))
    assert f"a {cls.__name__} stays without its" in caplog.text


def test_deterministic_may_be_set_later(cls):
    def values():
        posterior = make(cls)
        posterior.deterministic = True
        given = (posterior.mean,) if cls is CLASSES[0] else ()
        return posterior.kl(), [posterior.nll(sample) for sample in given]

    expected = values()
    with fast.patch():
        torch.testing.assert_close(values(), expected)


def test_a_mean_of_another_shape_or_dtype(cls):
    def values(change):
        posterior = make(cls)
        posterior.mean = change(posterior.mean)
        return posterior.kl(), posterior.sample(torch.Generator().manual_seed(0))

    for change in (lambda mean: mean[:1], torch.Tensor.double):
        expected = values(change)
        with fast.patch():
            torch.testing.assert_close(values(change), expected)


def test_empty_meta_tensors(cls):
    with fast.patch():
        posterior = cls(make(cls).parameters.to("meta"))
        assert posterior.sample().is_meta
        assert posterior.kl().is_meta


@pytest.mark.parametrize("name", ["mean", "std", "var", "logvar"])
def test_kl_to_a_posterior_whose_values_were_set(name, cls):
    def kl():
        other = make(cls, seed=1)
        setattr(other, name, torch.full_like(other.mean, 0.25))
        return make(cls).kl(other)

    expected = kl()
    with fast.patch():
        torch.testing.assert_close(kl(), expected)
