"""An endless sequence that is spread evenly over a cube: any stretch of it is."""

import numpy as np

from trainers.types import FloatArray


def even_cube(first: int, last: int, count: int, shift: float = 0.0) -> FloatArray:
    """Return places ``first`` to ``last`` of an endless sequence over the unit cube, ``[n, count]``.

    Kronecker's sequence with powers of the generalised golden ratio: any stretch of it is spread evenly, and none
    depends on what was drawn before.

    Args:
        first: Number of the first one.
        last: Number of the one after the last.
        count: Dimensions.
        shift: Of all of them, around the cube: another sequence for every seed.
    """
    ratio = 2.0
    for _ in range(64):  # the root of x^(count + 1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (count + 1))
    steps = ratio ** -np.arange(1.0, count + 1.0)
    return np.asarray((0.5 + shift + np.arange(first, last)[:, None] * steps) % 1.0)
