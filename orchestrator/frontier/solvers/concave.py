"""Maximise a smooth concave function over the non-negative orthant, in a few variables."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A concave function at one point."""

    value: float
    gradient: FloatArray
    """``[m]``"""
    hessian: FloatArray
    """``[m, m]``, negative semi-definite."""


def maximise(
    function: Callable[[FloatArray], Evaluation],
    start: FloatArray,
    *,
    value_limit: float,
    point_limit: float,
    tolerance: float = 1e-12,
    iterations: int = 500,
) -> tuple[FloatArray, float, bool]:
    """Projected Newton ascent (Bertsekas 1982, "Projected Newton methods for optimization problems").

    Variables at 0 whose gradient points outwards stand still; the others take a Newton step, shortened
    until it gains enough, and are projected back. Near the optimum it converges quadratically, where
    L-BFGS-B stalls at a relative 1e-8 of the value.

    Args:
        function: Value, gradient and Hessian; variables should be scaled so that 1 is a usual size.
        start: ``[m]``, >= 0.
        value_limit: A value above it counts as unbounded.
        point_limit: So does a coordinate above it.
        tolerance: Of the value, absolute.
        iterations: At most.

    Returns:
        The point ``[m]``, its value, and whether a maximum was found inside the limits.
    """
    point = start.astype(np.float64, copy=True)
    here = function(point)
    for _ in range(iterations if len(point) else 0):
        if here.value > value_limit or point.max() > point_limit:
            return point, here.value, False
        moved = np.maximum(point + here.gradient, 0.0) - point  # projected gradient: 0 at the optimum
        margin = min(1e-2, float(np.abs(moved).max()))
        free = (point > margin) | (here.gradient > 0)
        direction = _newton(here, free, float(1.0 + point.max()))
        if (
            float(here.gradient @ direction) < 2.0 * tolerance
            and float(np.abs(moved[~free]).max(initial=0.0)) < 1e-12
        ):
            # One more step, unchecked: no gain of the value is visible here, but the point gets sharper.
            last = np.maximum(point + direction, 0.0)
            return last, max(function(last).value, here.value), True
        # Nearly active variables that stand still for Newton slide down to 0 by the gradient.
        direction = np.where(free, direction, here.gradient)
        step, following = _search(function, point, here, direction)
        if following is None:
            break  # rounding hides any further gain
        point, here = step, following
    inside = here.value <= value_limit and (not len(point) or float(point.max()) <= point_limit)
    return point, here.value, inside


def _newton(here: Evaluation, free: NDArray[np.bool_], size: float) -> FloatArray:
    """Newton direction of the free variables, 0 for the others, at most ten times as long as the point."""
    direction = np.zeros_like(here.gradient)
    if free.any():
        curvature = -here.hessian[np.ix_(free, free)]
        diagonal = np.diag(curvature)
        # Relative to each variable's own curvature, which may differ by many orders far out.
        ridge = np.diag(np.maximum(1e-13 * diagonal, 1e-300))
        direction[free] = np.linalg.lstsq(curvature + ridge, here.gradient[free], rcond=None)[0]
        if float(here.gradient @ direction) <= 0:  # a numerically singular Hessian: plain ascent
            direction[free] = here.gradient[free]
        direction *= min(1.0, 10.0 * size / float(np.abs(direction).max(initial=1e-300)))
    return direction


def _search(
    function: Callable[[FloatArray], Evaluation], point: FloatArray, here: Evaluation, direction: FloatArray
) -> tuple[FloatArray, Evaluation | None]:
    """First of the halved steps along the projected direction that gains at least a fraction of the slope."""
    length = 1.0
    while length > 1e-12:
        candidate = np.maximum(point + length * direction, 0.0)
        promised = float(here.gradient @ (candidate - point))
        there = function(candidate)
        if promised > 0 and there.value >= here.value + 1e-4 * promised:
            return candidate, there
        length *= 0.5
    return point, None
