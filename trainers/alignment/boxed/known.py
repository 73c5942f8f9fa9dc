"""What looks at the held-out samples have shown of a residual: from each to the next there is a linear model.

Rewards answer multipliers as the covariance of the samples says, times a share ``ρ``: 1 at the optimum of every
multiplier, less for an adapter that has not learned all of it. ``ρ`` is fitted to what pairs of looks showed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from trainers.types import Evaluation, FloatArray

_RIDGE = 1e-6
_RESPONSE = 0.5
"""``ρ`` before two looks tell."""
_CUSHION = 0.02
"""Scaled, beyond what is lacking."""


@dataclass(frozen=True, kw_only=True)
class _Look:
    multipliers: FloatArray
    found: Evaluation
    curvature: FloatArray


class Known:
    """The looks so far, all on the same noise."""

    def __init__(self) -> None:
        """Begin without any."""
        self._looks: list[_Look] = []

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._looks)

    def add(self, multipliers: FloatArray, found: Evaluation, curvature: FloatArray) -> None:
        """Take what multipliers ``[m]`` came to, and ``−∂g/∂λ`` ``[m, m]`` there as the samples' covariance has it."""
        self._looks.append(_Look(multipliers=multipliers, found=found, curvature=curvature))

    def proposed(
        self,
        lacking: Callable[[Evaluation], FloatArray],
        near: FloatArray,
        least: FloatArray,
        most: FloatArray,
    ) -> FloatArray:
        """Return multipliers ``[m]`` at which nothing should be lacking, and nothing be paid in vain.

        Args:
            lacking: Of an evaluation, ``[m]``, scaled.
            near: Multipliers that are thought to be near.
            least: ``[m]``.
            most: ``[m]``.
        """

        # From the look that came nearest: what is lacking there is measured on the noise of the next.
        def distance(look: _Look) -> float:
            short = lacking(look.found)
            # What is exceeded at a multiplier of its least cannot be paid less for.
            return float(np.abs(np.where(look.multipliers > least, short, np.maximum(short, 0.0))).max())

        look = min(self._looks, key=distance)
        gaps = lacking(look.found) + _CUSHION
        step = newton_step(gaps, self._response(lacking) * look.curvature, look.multipliers, least)
        longest = 0.5 + 0.5 * float(np.linalg.norm(near))
        step *= min(1.0, longest / max(float(np.linalg.norm(step)), 1e-12))
        return np.clip(look.multipliers + step, least, most)

    def _response(self, lacking: Callable[[Evaluation], FloatArray]) -> float:
        """Return ``ρ``, of the looks there are."""
        along, square = _WEIGHT * _RESPONSE, _WEIGHT
        for before, after in zip(self._looks, self._looks[1:], strict=False):
            expected = before.curvature @ (after.multipliers - before.multipliers)
            along += float(expected @ (lacking(before.found) - lacking(after.found)))
            square += float(expected @ expected)
        return float(np.clip(along / square, 0.2, 1.0))


_WEIGHT = 0.02
"""Of ``_RESPONSE`` among the looks, squares of scaled violations."""


def newton_step(
    gaps: FloatArray, curvature: FloatArray, multipliers: FloatArray, least: FloatArray
) -> FloatArray:
    """Return Newton's step ``[m]`` of the concave dual among multipliers that are not below ``least``."""
    ridge = _RIDGE * max(float(np.trace(curvature)), _RIDGE)
    root = np.linalg.cholesky(_positive(curvature) + ridge * np.eye(len(gaps)))
    aim = root.T @ (multipliers - least) + solve_triangular(root, gaps, lower=True)
    return np.asarray(nnls(root.T, aim)[0] + least - multipliers)


def _positive(matrix: FloatArray) -> FloatArray:
    """Return a symmetric matrix without what is negative of it: noise."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)
