"""Conversion of arguments."""

import numpy as np


def alike(**arrays):
    """The named arrays as float64, in their order; ValueError unless all have the shape of the first.

    NumPy would broadcast in silence, and an oracle that does so agrees with a wrong answer.
    """
    arrays = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    first, *others = arrays
    for name in others:
        if arrays[name].shape != arrays[first].shape:
            shape, wanted = list(arrays[name].shape), list(arrays[first].shape)
            raise ValueError(f"{name} has shape {shape}, {first} has {wanted}: they must be equal")
    return tuple(arrays.values())
