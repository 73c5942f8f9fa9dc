"""Maximise a smooth concave function of weights on the simplex and of multipliers >= 0."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from orchestrator.frontier.solvers.concave import Evaluation

FloatArray = NDArray[np.float64]

LAST_BARRIER = 1e-13
"""Barrier parameter τ at the end: the value is exact to as many times τ as there are variables."""


def maximise_on_simplex(
    function: Callable[[FloatArray], Evaluation],
    weights: int,
    multipliers: int = 0,
    *,
    value_limit: float,
    point_limit: float,
    iterations: int = 300,
) -> tuple[FloatArray, bool]:
    """Primal-dual interior-point ascent (Wächter & Biegler 2006, IPOPT, without its filter).

    Newton's steps on the conditions ∇f + s = ν 1, z s = τ along the simplex, for a falling τ. A step must
    gain on f + τ Σ log z, or bring the conditions closer: near the optimum the first is lost in rounding long
    before the second is. Among several optima, as of two models that are alike, it takes the central one.

    Args:
        function: Of z ``[weights + multipliers]``, all entries > 0; its gradient along (1, .., 1, 0, .., 0)
            does not matter.
        weights: Entries on the simplex, >= 1; they come first and start equal.
        multipliers: Entries in the orthant, scaled so that 1 is a usual size.
        value_limit: A value above it counts as unbounded.
        point_limit: So does a multiplier above it.
        iterations: At most.

    Returns:
        The point, with exact zeros at active bounds, and whether the maximum is inside the limits.
    """
    size = weights + multipliers
    point = np.full(size, 0.1)
    point[:weights] = 1.0 / weights
    state = _State(
        weights=weights,
        point=point,
        slacks=1.0 / point,
        at=function(point),
        barrier=1.0,
    )
    for _ in range(iterations if size > 1 else 0):
        if state.at.value > value_limit or float(state.point.max()) > point_limit:
            return state.point, False
        error = state.error()
        following = state if error <= 10.0 * state.barrier else state.step(function)
        # Where no step is better, rounding hides what is left at this τ.
        if following is None or following is state:
            if state.barrier <= LAST_BARRIER:
                break
            following = replace(
                state, barrier=max(LAST_BARRIER, min(0.2 * state.barrier, state.barrier**1.5))
            )
        state = following
    inside = state.at.value <= value_limit and float(state.point.max()) <= point_limit
    return _sharpened(state.point, state.slacks, weights), inside


@dataclass(frozen=True, kw_only=True)
class _State:
    """Where the ascent stands."""

    weights: int
    point: FloatArray
    """z, > 0."""
    slacks: FloatArray
    """s, > 0: multipliers of z >= 0."""
    at: Evaluation
    barrier: float
    """τ"""

    def residual(self) -> FloatArray:
        """What is left of the two conditions, in nats: prices are weighed by the multipliers they act on."""
        dual = self.at.gradient + self.slacks
        dual[: self.weights] -= dual[: self.weights].mean()  # ν
        return np.concatenate(
            [dual * np.maximum(self.point, 1.0), self.point * self.slacks - self.barrier],
        )

    def error(self) -> float:
        """Largest entry of the residual."""
        return float(np.abs(self.residual()).max())

    def merit(self) -> float:
        """What a step must raise: f + τ Σ log z."""
        return self.at.value + self.barrier * float(np.log(self.point).sum())

    def direction(self) -> FloatArray:
        """Newton's direction along the simplex.

        Curvatures differ by many orders between active and free variables, and between weights and large
        multipliers: every variable is scaled to curvature 1 before the simplex is.
        """
        curvature = np.diag(self.slacks / self.point) - self.at.hessian
        scale = 1.0 / np.sqrt(np.diag(curvature))
        normal = np.where(np.arange(len(scale)) < self.weights, scale, 0.0)
        basis = null_space(normal[None] / np.linalg.norm(normal))
        uphill = basis.T @ (scale * (self.at.gradient + self.barrier / self.point))
        reduced = basis.T @ (curvature * np.outer(scale, scale)) @ basis
        reduced += 1e-11 * np.diag(np.diag(reduced))  # models that are alike leave directions flat
        newton: FloatArray = scale * (basis @ np.linalg.lstsq(reduced, uphill, rcond=None)[0])
        return newton

    def step(self, function: Callable[[FloatArray], Evaluation]) -> "_State | None":
        """The longest of the halved Newton steps that is accepted; None if there is none."""
        direction = self.direction()
        uphill = self.at.gradient + self.barrier / self.point
        ratio = self.slacks / self.point
        slope = float(uphill @ direction)
        change = self.barrier / self.point - self.slacks - ratio * direction
        slacks = self.slacks + _room(self.slacks, change) * change
        length = min(
            _room(self.point, direction),
            10.0 * (1.0 + float(self.point.max())) / float(np.abs(direction).max(initial=1e-300)),
        )
        merit, norm = self.merit(), float(np.linalg.norm(self.residual()))
        shortest = 1e-10 * length
        while length > shortest:
            point = self.point + length * direction
            there = replace(
                self,
                point=point,
                slacks=np.clip(slacks, 1e-10 * self.barrier / point, 1e10 * self.barrier / point),
                at=function(point),
            )
            gained = slope > 0 and there.merit() >= merit + 1e-4 * length * slope
            visible = 1e-4 * length * slope > 1e-15 * abs(merit)
            if (gained and visible) or float(np.linalg.norm(there.residual())) <= 0.9 * norm:
                return there
            length *= 0.5
        return None


def _room(values: FloatArray, change: FloatArray) -> float:
    """Fraction of a change, at most 1, that leaves every value 0.5 % of what it was."""
    return min(1.0, 0.995 / float((-change / values).max(initial=0.995)))


def _sharpened(point: FloatArray, slacks: FloatArray, weights: int) -> FloatArray:
    """Zeros where the bound is active, and weights that sum to 1 to the last digit."""
    sharp = np.where((point < slacks) & (point < 1e-6), 0.0, point)
    sharp[:weights] /= sharp[:weights].sum()
    return sharp
