"""Sums over a grid in one or two dimensions, fit to a set of Gaussians.

The trapezoidal rule converges exponentially for smooth functions that vanish at the ends of the box: with a
spacing of half a Gaussian's standard deviation its integral is exact in double precision. The logarithm of
a mixture bends sharply between far components, so that users halve the spacing until nothing changes.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

REACH = 8.5
"""Standard deviations to every side that a box covers; beyond are e^-36 of the mass."""
POINT_LIMIT = 2_000_000
"""Points of a grid: every array over it takes 16 MB per column."""


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """``K`` Gaussians."""

    means: FloatArray
    """``[K, d]``"""
    covariances: FloatArray
    """``[K, d, d]``"""

    def extent(self, frame: FloatArray, reach: float) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest coordinates ``[K, d]`` of each, ``reach`` standard deviations out, in a frame."""
        centers = self.means @ frame
        stds = np.sqrt(np.einsum("ai,kab,bi->ki", frame, self.covariances, frame))
        return centers - reach * stds, centers + reach * stds

    def narrowest(self, frame: FloatArray) -> float:
        """Smallest standard deviation along any direction, in a frame; infinite without any Gaussian."""
        if not len(self.means):
            return math.inf
        return math.sqrt(float(np.linalg.eigvalsh(frame.T @ self.covariances @ frame).min()))


class Grid:
    """Equally spaced points of a box around some Gaussians, in coordinates in which these are about round."""

    def __init__(self, inside: Gaussians, details: Gaussians, fineness: float) -> None:
        """Lay out the points.

        Args:
            inside: What the box covers.
            details: What shapes the integrand: the spacing fits those that overlap with the box, too.
            fineness: Spacing, in standard deviations of the narrowest.

        Raises:
            ValueError: The grid would have more than ``POINT_LIMIT`` points.
        """
        self._fineness = fineness
        # y = x'L with LL' the mean precision.
        self._frame = np.linalg.cholesky(np.linalg.inv(inside.covariances).mean(axis=0))
        # A little larger and finer than needed, so that it also serves the neighbourhood.
        self._low, self._high = (
            bound.min(axis=0) if index == 0 else bound.max(axis=0)
            for index, bound in enumerate(inside.extent(self._frame, REACH + 1.0))
        )
        self._spacing = 0.9 * self._needed(inside, details)
        counts = np.ceil((self._high - self._low) / self._spacing) + 1
        if float(np.prod(counts)) > POINT_LIMIT:
            raise ValueError(
                f"the quadrature would take {float(np.prod(counts)):.2g} points, at most {POINT_LIMIT} are allowed: "
                "the components are too narrow for the distance between them"
            )
        axes = [
            start + self._spacing * np.arange(int(count))
            for start, count in zip(self._low, counts, strict=True)
        ]
        lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
        self.points: FloatArray = lattice @ np.linalg.inv(self._frame)
        """``[n, d]``"""
        self.log_cell: float = len(axes) * math.log(self._spacing) - float(np.log(np.diag(self._frame)).sum())
        """Logarithm of the volume of a cell."""

    def serves(self, inside: Gaussians, details: Gaussians) -> bool:
        """Whether these Gaussians are covered as finely as on a grid of their own, and without much waste."""
        lows, highs = inside.extent(self._frame, REACH)
        low, high = lows.min(axis=0), highs.max(axis=0)
        if (low < self._low).any() or (high > self._high).any():
            return False
        needed = self._needed(inside, details)
        own, used = np.prod((high - low) / needed), np.prod((self._high - self._low) / self._spacing)
        return bool(self._spacing <= needed and used < 4.0 * own)

    def _needed(self, inside: Gaussians, details: Gaussians) -> float:
        lows, highs = details.extent(self._frame, 5.0)
        near = ((lows <= self._high) & (highs >= self._low)).all(axis=1)
        overlapping = Gaussians(means=details.means[near], covariances=details.covariances[near])
        return self._fineness * min(inside.narrowest(self._frame), overlapping.narrowest(self._frame))


def log_density(points: FloatArray, log_weights: FloatArray, gaussians: Gaussians) -> FloatArray:
    """Log density ``[n]`` of a mixture at ``[n, d]``, nats; finite however far out."""
    dimension = points.shape[1]
    total = np.full(len(points), -np.inf)
    for log_weight, mean, covariance in zip(log_weights, gaussians.means, gaussians.covariances, strict=True):
        factor = np.linalg.cholesky(covariance)
        normalised = (points - mean) @ np.linalg.inv(factor).T
        log_scale = float(np.log(np.diag(factor)).sum()) + 0.5 * dimension * math.log(2.0 * math.pi)
        np.logaddexp(
            total, log_weight - log_scale - 0.5 * np.einsum("ni,ni->n", normalised, normalised), out=total
        )
    return total
