"""Convex functions as the largest of affine pieces, and where the difference of two of them is largest.

Symbols: U and L are such functions of x in ``[0, 1]^m``, U rising; R_k are points. Their region is what mixtures of
them reach: x <= Σ w_k R_k for some w on the simplex. U − L is neither convex nor concave there.

1. Where one piece of L is the largest, U − L is convex, and largest at a vertex of {(x, t): t >= L(x)}: in a box those
   can be listed (``vertices``). A region has facets of its own, and from five dimensions on too many vertices.
2. ``max U − L = max_j max_x (μ_j'x + ν_j − L(x))`` over the pieces (μ_j, ν_j) of U: each is a linear program in x, t, w
   (``widest``). Against any one piece (λ, c) of L it is at most ν_j − c plus the largest d'x, d = max(μ_j − λ, 0), and
   that is at most Σ d and max_k d'R_k: the programs of most pieces need not be solved.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.spatial import HalfspaceIntersection, QhullError

FloatArray = NDArray[np.float64]

_BLOCK = 512
"""Places, and pieces, that are looked at together: 2 MiB."""
_FEWEST = 64
"""Programs that are solved at least: whoever asks may have been at the worst place before."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """The largest of affine functions; also the set where none of them is above 0."""

    slopes: FloatArray
    """``[n, m]``"""
    offsets: FloatArray
    """``[n]``"""

    def __call__(self, at: FloatArray) -> FloatArray:
        """``[v, m]`` to ``[v]``, a block that fits into a cache after another: the whole table may be gigabytes."""
        pieces = np.column_stack([self.slopes, self.offsets])
        places = np.vstack([at.T, np.ones(len(at))])
        values = np.full(len(at), -np.inf)
        for begin in range(0, len(at), _BLOCK):
            some, largest = places[:, begin : begin + _BLOCK], values[begin : begin + _BLOCK]
            for first in range(0, len(pieces), _BLOCK):
                np.maximum(largest, (pieces[first : first + _BLOCK] @ some).max(axis=0), out=largest)
        return values


def widest(upper: Pieces, lower: Pieces, points: FloatArray, ends: FloatArray, *, slack: float) -> FloatArray:
    """Places ``[v, m]`` of the region, one of which has the largest U − L; none where the region is empty.

    Args:
        upper: U, rising; it must be the largest of these pieces in the region only.
        lower: L.
        points: R, ``[k, m]``.
        ends: Largest x, ``[m]``, 0 or 1.
        slack: By which x may be above the mixture.
    """
    (count, size), tangents = points.shape, len(lower.offsets)
    above = np.block([[lower.slopes, -np.ones((tangents, 1)), np.zeros((tangents, count))]])
    mixed = np.block([[np.eye(size), np.zeros((size, 1)), -points.T]])
    left, right = np.concatenate([above, mixed]), np.concatenate([-lower.offsets, np.full(size, slack)])
    simplex = np.concatenate([np.zeros(size + 1), np.ones(count)])[None]
    bounds = [(0, end) for end in ends.tolist()] + [(None, None)] + [(0, None)] * count

    def most(slope: FloatArray, offset: float) -> FloatArray:
        """What the program of each piece of U comes to at most, if L is only said to be above one plane: ``[n]``."""
        rising = np.maximum(upper.slopes - slope, 0.0) * ends
        everywhere = rising.sum(axis=1)
        reached = (rising @ points.T).max(axis=1) + slack * everywhere
        largest: FloatArray = np.minimum(everywhere, reached) + upper.offsets - offset
        return largest

    limits = np.full(len(upper.offsets), np.inf)
    for slope, offset in zip(lower.slopes, lower.offsets.tolist(), strict=True):
        np.minimum(limits, most(slope, offset), out=limits)
    found: list[FloatArray] = []
    best = -np.inf
    while limits.max(initial=-np.inf) > (best if len(found) >= _FEWEST else -np.inf):
        piece = int(limits.argmax())
        costs = np.concatenate([-upper.slopes[piece], [1.0], np.zeros(count)])
        solved = linprog(costs, A_ub=left, b_ub=right, A_eq=simplex, b_eq=[1.0], bounds=bounds)
        if solved.x is None:  # the region is empty
            break
        found.append(solved.x[:size])
        best = max(best, float(upper.offsets[piece] - solved.fun))
        # Its multipliers mix the tangents that meet there into a plane that says more of other pieces, too.
        shares = np.maximum(-solved.ineqlin.marginals[:tangents], 0.0)
        shares /= shares.sum()
        limits = np.minimum(limits, most(shares @ lower.slopes, float(shares @ lower.offsets)))
        limits[piece] = -np.inf
    return np.array(found).reshape(-1, size)


def vertices(normals: FloatArray, offsets: FloatArray, inside: FloatArray) -> FloatArray:
    """Vertices ``[v, d]`` of the bounded set of z with ``normals @ z + offsets <= 0``.

    Where so many planes all but meet in one point, as of symmetric problems, that Qhull cannot tell them apart, it is
    asked again with its planes moved by about 1e-9.
    """
    halfspaces = np.column_stack([normals, offsets])
    try:
        found: FloatArray = HalfspaceIntersection(halfspaces, inside).intersections
    except QhullError:
        found = HalfspaceIntersection(halfspaces, inside, qhull_options="H QJ").intersections
    return found[np.isfinite(found).all(axis=1)]


def center(slopes: FloatArray, offsets: FloatArray) -> FloatArray | None:
    """Center of the largest ball in a polytope; None if it is empty or next to flat."""
    lengths = np.linalg.norm(slopes, axis=1)
    size = slopes.shape[1]
    solved = linprog(
        np.append(np.zeros(size), -1.0),
        A_ub=np.column_stack([slopes, lengths]),
        b_ub=-offsets,
        bounds=[(None, None)] * size + [(0, None)],
    )
    if solved.x is None or solved.x[-1] < 1e-4:
        return None
    found: FloatArray = solved.x[:-1]
    return found
