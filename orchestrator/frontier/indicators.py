"""Quality of a set of points, as one number."""

import moocore
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def hypervolume(points: FloatArray, reference: FloatArray) -> float:
    """Volume that the points dominate, up to the reference point (Zitzler & Thiele 1998).

    Args:
        points: ``[n, m]``, minimised; rows that are not better than the reference everywhere add nothing.
        reference: ``[m]``; store it with the number, which means nothing without it.

    Returns:
        In the product of the units of the coordinates; 0 for no points.
    """
    counted = points[(points < reference).all(axis=1)]  # drops NaN as well
    return float(moocore.hypervolume(counted, ref=reference)) if len(counted) else 0.0
