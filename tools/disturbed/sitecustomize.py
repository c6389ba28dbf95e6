"""Disturbs what NumPy's generators draw, in the last bit of a float32. Python runs it at its start.

With this folder on PYTHONPATH and DLNOTES_DISTURB=1, 2, ..., each number drawn from a normal or a
uniform distribution is multiplied by 1 - 2**-23, 1 or 1 + 2**-23: all initial weights, and the
noise in data. Which factor a number gets depends on DLNOTES_DISTURB and the draw alone, so that the
same seed still gives the same numbers.
"""

import os
import zlib

import numpy as np

DRAW = os.environ.get("DLNOTES_DISTURB", "")


def disturbed(drawn, low=-np.inf, high=np.inf):
    "`drawn` with its last bits changed, within its limits."
    values = np.asarray(drawn)
    seed = [int(DRAW), zlib.crc32(values.tobytes())]
    step = np.random.Generator(np.random.PCG64(seed)).integers(-1, 2, values.shape)
    values = np.clip(values * (1 + step * 2.0**-23), low, high).astype(values.dtype)
    return values if isinstance(drawn, np.ndarray) else values[()].item()


class Generator(np.random.Generator):
    "NumPy's generator, its normal and uniform draws disturbed."

    def normal(self, *args, **options):
        return disturbed(super().normal(*args, **options))

    def standard_normal(self, *args, **options):
        return disturbed(super().standard_normal(*args, **options))

    def uniform(self, low=0.0, high=1.0, size=None):
        return disturbed(super().uniform(low, high, size), low, high)


def default_rng(seed=None):
    if isinstance(seed, np.random.Generator):
        return seed
    return Generator(plain_rng(seed).bit_generator)


if DRAW:
    plain_rng, np.random.default_rng = np.random.default_rng, default_rng
