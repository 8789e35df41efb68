"""What the tests of the reference share."""

import numpy as np
import pytest


@pytest.fixture
def numerical_gradient():
    """Central finite differences of a scalar function of one array: independent of every analytic derivative here."""

    def gradient(function, x, step=1e-5):
        x = np.asarray(x, dtype=np.float64)
        result = np.empty(x.shape)
        for index in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[index] += step
            down[index] -= step
            result[index] = (function(up) - function(down)) / (2 * step)
        return result

    return gradient
