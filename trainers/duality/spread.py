"""Endless sequences that are spread evenly over the simplex: any stretch of them is."""

import numpy as np

from trainers.duality.projection import project_simplex
from trainers.low_discrepancy import even_cube
from trainers.types import FloatArray

_BEYOND = 1.25
"""Of the simplex: how far places are moved from its centre before they are projected back. Of two models each corner
has a tenth of the places then; of more, faces have a larger share."""


def even_simplex(first: int, last: int, count: int, shift: float = 0.0) -> FloatArray:
    """Return places of such a sequence over the simplex, ``[n, count]``: at least 0, with the sum 1.

    The gaps between sorted places of the cube are spread evenly (Devroye 1986, V.2).
    """
    places = np.sort(even_cube(first, last, count - 1, shift), axis=1)
    return np.asarray(np.diff(places, axis=1, prepend=0.0, append=1.0))


def to_the_ends(weights: FloatArray) -> FloatArray:
    """Return weights ``[n, m]`` of the simplex moved outwards, and back onto it: some on its faces and corners.

    What is learned of the inside alone is a guess at the ends.
    """
    centre = 1.0 / weights.shape[1]
    return np.stack([project_simplex(centre + _BEYOND * (row - centre)) for row in weights])


def simplex_design(first: FloatArray, points: int) -> FloatArray:
    """Return weights ``[points, m]`` for an evaluation: those given, the corners, equal ones, and others between."""
    count = len(first)
    others = max(points - count - 2, 0)
    # Place 0 is the middle of the cube: of two models their equal weights.
    between = even_simplex(1, 1 + others, count)
    return np.vstack([first, np.eye(count), np.full(count, 1.0 / count), between])[:points]
