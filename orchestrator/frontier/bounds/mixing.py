"""Which finished trial, or mixture of trials, to use: sample from trial k with probability w_k.

    min Σ w_k K_k   over w on the simplex   s.t. Σ w_k R_k >= b                              (thresholds b)
    max t           over w on the simplex   s.t. Σ w_k R_k >= a + t d, >= b, Σ w_k K_k <= κ  (a KL budget κ)

A vertex of the first mixes at most one trial more than there are thresholds. Σ w_k K_k is the KL of the draw of a
trial and a sample of it together; that of the samples alone is at most that, since KL is convex.

What is asked has to hold with confidence: every R_k counts ``deviations`` standard errors below its estimate, and
against a budget every K_k so many above. All trials are judged on the same noise and prompts, so their errors move
together, and the standard error of a mixture is at most Σ w_k e_k whatever their correlation. The least KL among what
holds is that of the estimates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from orchestrator.frontier.bounds.bounds import ROUNDING, Bounds, Box, FrontierPoint
from orchestrator.frontier.feasibility import TWO_SIDED

FloatArray = NDArray[np.float64]

NEGLIGIBLE = 10 * ROUNDING
"""Probabilities below it are dropped: what rounding of thresholds makes of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """Models to draw from. Intervals are two-sided 95 %, as of trials whose errors move together."""

    members: tuple[int, ...]
    """Places in the sequence of points, the most probable first."""
    probabilities: tuple[float, ...]
    """Of the members; they sum to 1."""
    kl: float
    """Nats."""
    kl_low: float
    kl_high: float
    kl_bound: float
    """One-sided upper bound at the confidence that was asked for, nats."""
    rewards: FloatArray
    """``[m]``, reward units."""
    rewards_low: FloatArray
    rewards_high: FloatArray
    rewards_bound: FloatArray
    """``[m]``, one-sided lower bounds at the same confidence: what a threshold is held against."""
    thresholds: FloatArray
    """``[m]``, that it was picked for; with a budget those that turned out to be affordable, −inf where none."""
    lower_bound: float
    """No model is known to need less for these thresholds, nats: the largest tangent of the finished trials."""

    @property
    def excess(self) -> float:
        """Distance to the bound, nats."""
        return self.kl - self.lower_bound


class OutOfReachError(ValueError):
    """No trial, and no mixture of trials, does what is asked with the confidence that is asked for."""

    def __init__(
        self,
        message: str,
        *,
        missing: FloatArray | None = None,
        nearest: Mixture | None = None,
        kl: float | None = None,
    ) -> None:
        """Say what comes nearest.

        Args:
            message: For users who see nothing else.
            missing: ``[m]``, by how much the bounds of the nearest fall short, reward units; None if they do not.
            nearest: What comes nearest, where it falls short.
            kl: KL that the thresholds need, at its bound, nats, where only the budget is too small.
        """
        super().__init__(message)
        self.missing, self.nearest, self.kl = missing, nearest, kl


def pick(
    points: Sequence[FrontierPoint],
    thresholds: FloatArray,
    *,
    deviations: float = 0.0,
    mix: bool = True,
) -> Mixture:
    """Find the least KL that meets thresholds.

    Args:
        points: Finished trials, and the pretrained model.
        thresholds: ``[m]``, reward units; −inf for a reward that may be anything.
        deviations: Standard errors by which every member is taken to be worse than measured; 1.645 for one-sided 95 %
            (``feasibility.joint_deviations`` for several thresholds).
        mix: Whether to mix trials, or to take one.

    Raises:
        OutOfReachError: Nothing reaches the thresholds.
        ValueError: A threshold is NaN or infinite above, or their number differs from that of the rewards.
    """
    table = _Table.of(points, deviations)
    thresholds = table.checked(thresholds)
    weights = table.least_kl(thresholds, mix=mix)
    if weights is None:
        nearest, missing = table.nearest(thresholds, mix=mix)
        raise OutOfReachError(
            f"no {'mixture of finished trials' if mix else 'finished trial'} reaches thresholds "
            f"{thresholds.tolist()}; the nearest falls short by {missing.tolist()}",
            missing=missing,
            nearest=_described(points, nearest, thresholds, table, deviations),
        )
    return _described(points, weights, thresholds, table, deviations)


def pick_within(
    points: Sequence[FrontierPoint],
    kl_budget: float,
    *,
    start: FloatArray,
    improve: FloatArray,
    thresholds: FloatArray | None = None,
    deviations: float = 0.0,
    mix: bool = True,
) -> Mixture:
    """Find what improves rewards most within a KL budget.

    The improvement is common: the largest t with every sought reward at least ``start + t * improve``. With
    standard deviations for ``improve`` it is the smallest improvement in σ; with 1 for one reward and 0 for the
    others it is that reward. Of all that attain it, the least KL is taken.

    Args:
        points: Finished trials, and the pretrained model.
        kl_budget: Nats.
        start: ``[m]``, rewards to improve on, usually the pretrained model's, reward units.
        improve: ``[m]``, >= 0, reward units per unit of improvement; 0 for a reward that is not sought.
        thresholds: ``[m]``, to be met as well, −inf where none.
        deviations: As of ``pick``.
        mix: As of ``pick``.

    Raises:
        OutOfReachError: Nothing reaches the thresholds, or nothing within the budget.
        ValueError: The budget is negative or NaN, or no reward is sought, or one is sought downwards.
    """
    if not kl_budget >= 0:
        raise ValueError(f"a KL budget is at least 0 nats, got {kl_budget:g}")
    if not (improve >= 0).all() or not improve.any():
        raise ValueError(f"at least one reward is sought, and none downwards, got {improve.tolist()}")
    table = _Table.of(points, deviations)
    floor = table.checked(np.full_like(start, -np.inf) if thresholds is None else thresholds)
    improvement = table.largest_improvement(kl_budget, start, improve, floor, mix=mix)
    if improvement is None:
        needed = pick(points, floor, deviations=deviations, mix=mix).kl_bound
        raise OutOfReachError(
            f"thresholds {floor.tolist()} need {needed:.3g} nats, the budget is {kl_budget:g}", kl=needed
        )
    goal = np.where(improve > 0, np.maximum(floor, start + improvement * improve), floor)
    weights = table.least_kl(goal, mix=mix, budget=kl_budget)
    assert weights is not None, "what attains the improvement is there"
    return _described(points, weights, goal, table, deviations)


def alone(
    points: Sequence[FrontierPoint], member: int, thresholds: FloatArray, *, deviations: float = 0.0
) -> Mixture:
    """Describe one point at thresholds ``[m]`` that it is known to hold; the others bound their least KL."""
    weights = np.zeros(len(points))
    weights[member] = 1.0
    return _described(points, weights, thresholds, _Table.of(points, deviations), deviations)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    """Members as thresholds see them; rewards in units of their range, so that tolerances of a solver fit."""

    rewards: FloatArray
    """``[k, m]``, lower bounds."""
    kl: FloatArray
    """``[k]``, nats, as measured."""
    kl_bound: FloatArray
    """``[k]``, nats, upper bounds: what a budget is held against."""
    units: FloatArray
    """``[m]``, reward units."""

    @classmethod
    def of(cls, points: Sequence[FrontierPoint], deviations: float) -> "_Table":
        spread = np.ptp([point.reaches(0.0) for point in points], axis=0)
        units = np.where(spread > 0, spread, 1.0)
        kl = np.array([point.kl for point in points])
        return cls(
            rewards=np.array([point.rewards - deviations * point.errors for point in points]) / units,
            kl=kl,
            kl_bound=kl + deviations * np.array([point.kl_error for point in points]),
            units=units,
        )

    def checked(self, thresholds: FloatArray) -> FloatArray:
        if thresholds.shape != self.units.shape:
            raise ValueError(f"there are {len(self.units)} rewards, got {thresholds.size} thresholds")
        if not (thresholds < np.inf).all():
            raise ValueError(f"thresholds must be numbers, or -inf for none, got {thresholds.tolist()}")
        return thresholds

    def least_kl(
        self, thresholds: FloatArray, *, mix: bool, budget: float | None = None
    ) -> FloatArray | None:
        """Probabilities ``[k]``; None if nothing reaches the thresholds, or nothing within the budget."""
        wanted = np.isfinite(thresholds)
        bounds = (thresholds / self.units - ROUNDING)[wanted]
        rewards = self.rewards[:, wanted]
        if not mix:
            meeting = (rewards >= bounds).all(axis=1)
            if budget is not None:
                meeting &= self.kl_bound <= budget
            if not meeting.any():
                return None
            alone = np.zeros_like(self.kl)
            alone[int(np.argmin(np.where(meeting, self.kl, np.inf)))] = 1.0
            return alone
        within = [] if budget is None else [self.kl_bound]
        solved = linprog(
            self.kl,
            A_ub=np.vstack([-rewards.T, *within]),
            # What attains an improvement does so to rounding.
            b_ub=np.append(-bounds, [] if budget is None else [budget + ROUNDING]),
            A_eq=np.ones((1, len(self.kl))),
            b_eq=[1.0],
        )
        probabilities: FloatArray | None = solved.x
        return probabilities

    def largest_improvement(
        self, budget: float, start: FloatArray, improve: FloatArray, floor: FloatArray, *, mix: bool
    ) -> float | None:
        """Return t; None if nothing within the budget reaches the floor."""
        sought, wanted = improve > 0, np.isfinite(floor)
        step, origin = (improve / self.units)[sought], (start / self.units)[sought]
        bounds = (floor / self.units - ROUNDING)[wanted]
        if not mix:
            meeting = (self.rewards[:, wanted] >= bounds).all(axis=1) & (self.kl_bound <= budget)
            gains = ((self.rewards[:, sought] - origin) / step).min(axis=1)[meeting]
            return float(gains.max()) if len(gains) else None
        rows = [
            np.column_stack([-self.rewards[:, sought].T, step]),
            np.column_stack([-self.rewards[:, wanted].T, np.zeros(wanted.sum())]),
            np.append(self.kl_bound, 0.0)[None],
        ]
        solved = linprog(
            np.append(np.zeros(len(self.kl)), -1.0),
            A_ub=np.concatenate(rows),
            b_ub=np.concatenate([-origin, -bounds, [budget]]),
            A_eq=np.append(np.ones(len(self.kl)), 0.0)[None],
            b_eq=[1.0],
            bounds=[(0, None)] * len(self.kl) + [(None, None)],
        )
        return None if solved.x is None else float(solved.x[-1])

    def nearest(self, thresholds: FloatArray, *, mix: bool) -> tuple[FloatArray, FloatArray]:
        """Probabilities ``[k]`` of what comes nearest, by the sum in units, and its shortfall ``[m]``, reward units."""
        wanted = np.isfinite(thresholds)
        bounds = np.where(wanted, thresholds / self.units, -np.inf)
        if not mix:
            short = np.maximum(bounds - self.rewards, 0.0)
            place = int(np.argmin(short.sum(axis=1)))
            return np.eye(len(self.kl))[place], short[place] * self.units
        count, size = len(self.kl), int(wanted.sum())
        solved = linprog(
            np.append(np.zeros(count), np.ones(size)),
            A_ub=np.column_stack([-self.rewards[:, wanted].T, -np.eye(size)]),
            b_ub=-bounds[wanted],
            A_eq=np.append(np.ones(count), np.zeros(size))[None],
            b_eq=[1.0],
        )
        assert solved.x is not None, "any mixture falls short by something"
        missing = np.zeros_like(thresholds)
        missing[wanted] = solved.x[count:] * self.units[wanted]
        return solved.x[:count], missing


def _described(
    points: Sequence[FrontierPoint],
    weights: FloatArray,
    thresholds: FloatArray,
    table: _Table,
    deviations: float,
) -> Mixture:
    """Clean the probabilities and propagate the standard errors."""
    members = [int(k) for k in np.argsort(-weights, kind="stable") if weights[k] >= NEGLIGIBLE]
    kept = weights[members] / weights[members].sum()
    chosen = [points[k] for k in members]
    kl = float(kept @ [point.kl for point in chosen])
    rewards = kept @ np.array([point.rewards for point in chosen])
    kl_error = float(kept @ [point.kl_error for point in chosen])
    errors = kept @ np.array([point.errors for point in chosen])
    return Mixture(
        members=tuple(members),
        probabilities=tuple(kept.tolist()),
        kl=kl,
        kl_low=max(kl - TWO_SIDED * kl_error, 0.0),
        kl_high=kl + TWO_SIDED * kl_error,
        kl_bound=kl + deviations * kl_error,
        rewards=rewards,
        rewards_low=rewards - TWO_SIDED * errors,
        rewards_high=rewards + TWO_SIDED * errors,
        rewards_bound=rewards - deviations * errors,
        thresholds=thresholds,
        lower_bound=_lower_bound(points, thresholds, table.units, deviations),
    )


def _lower_bound(
    points: Sequence[FrontierPoint], thresholds: FloatArray, units: FloatArray, deviations: float
) -> float:
    """Largest tangent; one that prices a reward without a threshold says nothing."""
    free = np.isinf(thresholds)
    silent = [
        point
        if point.multipliers is None or not (point.multipliers[free] > 0).any()
        else replace(point, multipliers=None)
        for point in points
    ]
    at = np.where(free, points[0].rewards, thresholds)
    box = Box(low=at - units, high=at)
    return float(Bounds(silent, box, deviations=deviations).lower(at[None])[0])
