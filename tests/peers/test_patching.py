"""What every `patch()` does, on a module and a class of our own: no other project is needed."""

import logging
import sys
import types

import pytest

from vae_fast.integrations import patching
from vae_fast.integrations.patching import Project, add, wrap


class Owner:
    def method(self, x=1):
        """Their docstring."""
        return x


def doubled(theirs):
    def method(self, x=1):
        return 2 * theirs(self, x)

    return method


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("some_project")
    made.function = lambda self: "theirs"
    monkeypatch.setitem(sys.modules, "some_project", made)
    monkeypatch.setattr(patching, "_version", lambda package: "1.2.3")
    return made


@pytest.fixture
def project(module):
    def changes():
        ours = wrap(module, "function", lambda theirs: lambda self: "ours")
        return [wrap(Owner, "method", doubled), add(Owner, "extra", "new"), ours]

    made = Project("some-project", "some_project", ("1.2.2", "1.2.3"), changes)
    yield made
    made.unpatch()


def attributes(module):
    return dict(vars(Owner)), dict(vars(module))


def assert_same_objects(before, after):
    for old, new in zip(before, after):
        assert old.keys() == new.keys()
        assert all(old[name] is new[name] for name in old)


def test_plain_call_and_unpatch(project, module):
    before = attributes(module)
    project.patch()
    assert (Owner().method(3), Owner.extra, module.function(None)) == (6, "new", "ours")
    project.unpatch()
    assert_same_objects(before, attributes(module))
    project.unpatch()  # nothing to do
    assert_same_objects(before, attributes(module))


def test_the_context_puts_back_the_originals_also_after_an_error(project, module):
    before = attributes(module)
    with pytest.raises(KeyError), project.patch():
        raise KeyError
    assert_same_objects(before, attributes(module))


def test_the_originals_come_back_also_if_the_project_cannot_be_left_in_order(project, module):
    before = attributes(module)
    project.patch()
    project.before_unpatch = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        project.unpatch()
    assert_same_objects(before, attributes(module))
    assert not project.is_patched


def test_a_second_patch_changes_nothing_and_undoes_nothing(project, module):
    before = attributes(module)
    with project.patch() as first:
        inside = attributes(module)
        with project.patch() as second:
            assert_same_objects(inside, attributes(module))
            assert second.patched == first.patched
        assert_same_objects(inside, attributes(module))
    assert_same_objects(before, attributes(module))


def test_it_can_be_patched_again(project):
    for _ in range(2):
        with project.patch():
            assert Owner().method() == 2
        assert Owner().method() == 1


def test_entering_a_patch_that_was_taken_back_is_refused(project):
    taken_back = project.patch()
    taken_back.unpatch()
    with pytest.raises(RuntimeError, match="was taken back: call patch"), taken_back:
        pass


def test_it_says_what_it_patched(project, caplog):
    with caplog.at_level(logging.INFO, "vae_fast"), project.patch() as patch:
        assert patch.patched == (f"{__name__}.Owner.method", f"{__name__}.Owner.extra", "some_project.function")
        assert repr(patch).startswith("some-project 1.2.3, patched:\n")
        assert all(name in repr(patch) and name in caplog.text for name in patch.patched)
    assert "no longer patched" in repr(patch)
    assert "the originals are back" in caplog.text


def test_a_wrapped_function_keeps_its_name_signature_and_docstring(project):
    original = Owner.method
    with project.patch():
        assert (Owner.method.__name__, Owner.method.__doc__) == ("method", original.__doc__)
        assert Owner.method.__wrapped__ is original


def test_a_missing_project(project):
    sys.modules.pop("some_project")
    with pytest.raises(ImportError, match=r"some-project is not installed: pip install some-project==1\.2\.3"):
        project.patch()


def test_what_a_project_itself_lacks_is_not_called_missing(project, monkeypatch, tmp_path):
    sys.modules.pop("some_project")
    (tmp_path / "some_project.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        project.patch()


@pytest.mark.parametrize("version", ["1.3.0", "of an unknown version"])
def test_an_untested_version_is_refused_unless_forced(version, project, module, monkeypatch):
    monkeypatch.setattr(patching, "_version", lambda package: version)
    before = attributes(module)
    with pytest.raises(RuntimeError, match=rf"{version}: the patch was tested on 1\.2\.2, 1\.2\.3.*force=True"):
        project.patch()
    assert_same_objects(before, attributes(module))
    with project.patch(force=True):
        assert Owner().method() == 2


def test_a_version_that_lacks_a_name_is_left_as_it_was(project, module):
    del module.function
    before = attributes(module)
    with pytest.raises(RuntimeError, match=r"some-project 1\.2\.3 has no some_project\.function"):
        project.patch(force=True)
    assert_same_objects(before, attributes(module))


def test_versions_are_read_from_what_is_installed():
    assert patching._version("pytest") == pytest.__version__
    assert patching._version("a-package-that-nobody-has") == "of an unknown version"


def test_a_patch_taken_back_does_not_take_back_the_next(project):
    first = project.patch()
    first.unpatch()
    with project.patch():
        first.unpatch()
        assert project.is_patched
        assert Owner().method() == 2


def test_a_builds_label_is_no_other_version(monkeypatch):
    monkeypatch.setattr(patching.importlib.metadata, "version", lambda package: "1.2.3+cpu")
    assert patching._version("some-project") == "1.2.3"


def test_an_inherited_function_is_not_wrapped(module):
    class Heir(Owner):
        pass

    made = Project("some-project", "some_project", ("1.2.3",), lambda: [wrap(Heir, "method", doubled)])
    with pytest.raises(RuntimeError, match=r"has no .*Heir\.method"):
        made.patch()
