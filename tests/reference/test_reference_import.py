"""The reference stands alone: numpy, the standard library, and nothing of ours."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

from vae_fast import reference

# Loads the folder by path under a stand-in name, so that vae_fast/__init__.py takes no part, and then uses every op.
ALONE = """
import importlib.util, sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "stand_in"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
for name in ("torch", "triton", "scipy", "vae_fast"):
    assert name not in sys.modules, name
    try:
        __import__(name)
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError(f"{name} is not blocked: this test shows nothing")

folder = Path(sys.argv[1])
spec = importlib.util.spec_from_file_location(
    "stand_in", folder / "__init__.py", submodule_search_locations=[str(folder)]
)
module = sys.modules["stand_in"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

z, kl = module.gaussian.forward([[0.0, 1.0]], [[0.0, 0.0]], seed=1, reduction="sample")
loss = module.reconstruction.elbo_forward((z,), z, kl, 1.0, module.likelihoods.mse)
assert loss == (0.5, 0.0, 0.5), loss
print("alone")
"""


def test_the_reference_imports_with_numpy_alone():
    folder = Path(reference.__file__).parent
    result = subprocess.run([sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "alone\n"


@pytest.mark.parametrize("name", [*reference.__all__, "arrays"])
def test_the_examples_in_the_docstrings_are_true(name):
    __import__(f"vae_fast.reference.{name}")
    assert doctest.testmod(getattr(reference, name)).failed == 0
