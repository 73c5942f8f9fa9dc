"""Exact Euclidean projections."""

import numpy as np

from trainers.types import FloatArray


def project_nonnegative(point: FloatArray) -> FloatArray:
    """Project ``[m]`` onto the nonnegative orthant."""
    return np.maximum(point, 0.0)


def project_simplex(point: FloatArray) -> FloatArray:
    """Project ``[m]`` onto ``{λ >= 0, Σ λ = 1}``.

    Source: Held, Wolfe & Crowder (1974); the sorted form of Duchi et al. (2008), algorithm 1. Clipping and
    rescaling, which the paper's public code does, is not this projection.

    Raises:
        ValueError: ``point`` is empty or not finite.
    """
    if point.size == 0 or not np.isfinite(point).all():
        raise ValueError(f"only a finite, non-empty point can be projected onto the simplex, got {point}")
    point = point - point.max()  # the same projection, and 1 is not lost beside large entries
    descending = np.sort(point)[::-1]
    shifts = (np.cumsum(descending) - 1.0) / np.arange(1, point.size + 1)
    support = np.nonzero(descending > shifts)[0][-1]
    return project_nonnegative(point - shifts[support])
