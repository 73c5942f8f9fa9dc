"""The dual step of a composition: Newton's direction on the simplex, by exact projections."""

import numpy as np

from trainers.duality.projection import project_nonnegative, project_simplex
from trainers.types import FloatArray

_ITERATIONS = 3000
_RIDGE = 1e-6


def newton_target(
    weights: FloatArray, tilt: FloatArray, gradient: FloatArray, curvature: FloatArray
) -> tuple[FloatArray, FloatArray, float]:
    """Maximise the quadratic model of the dual over weights on the simplex and multipliers >= 0.

    ``g·δ − ½ δᵀ C δ`` by projected gradient with Nesterov's momentum (Beck & Teboulle 2009). Plain ascent takes ever
    smaller steps between models that are alike, where C is nearly singular.

    Args:
        weights: ``λ``, ``[m]``.
        tilt: ``μ``, ``[r]``.
        gradient: ``g``, ``[m + r]``.
        curvature: ``C``, ``[m + r, m + r]``, positive semi-definite.

    Returns:
        The maximiser, weights and multipliers, and the Newton decrement ``√(δᵀ C δ)``.
    """
    count = len(weights)
    start = np.concatenate([weights, tilt])
    ridge = _RIDGE * max(float(np.trace(curvature)) / len(start), 1.0)
    matrix = curvature + ridge * np.eye(len(start))
    step = 1.0 / float(np.linalg.eigvalsh(matrix)[-1])
    point, ahead, momentum = start, start, 1.0
    for _ in range(_ITERATIONS):
        moved = ahead + step * (gradient - matrix @ (ahead - start))
        projected = np.concatenate([project_simplex(moved[:count]), project_nonnegative(moved[count:])])
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        change = projected - point
        if float(change @ (ahead - projected)) > 0:  # the momentum points back: forget it
            following, ahead = 1.0, projected
        else:
            ahead = projected + (momentum - 1.0) / following * change
        point, momentum = projected, following
        if float(np.abs(change).max()) < 1e-12:
            break
    move = point - start
    return point[:count], point[count:], float(np.sqrt(max(move @ curvature @ move, 0.0)))


def gap(weights: FloatArray, excess: FloatArray) -> float:
    """Return the primal-dual gap ``max_i e_i − Σ λ_i e_i`` for ``e = KL − offsets``, ``[m]``; 0 at the optimum."""
    return float(excess.max() - weights @ excess)
