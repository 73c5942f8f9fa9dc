"""Two bounds on the least KL from few finished trials, over a whole box of thresholds.

Symbols (Khalafi et al., arXiv 2508.19104, problem UR-A; *ours* from step 2 on):

    P(b)            least KL with E[r] >= b: convex, rising, and ∇P(b) = λ*(b)
    R_k, K_k, λ_k   rewards, KL and multipliers of finished trial k; the pretrained model is one, at K = 0, λ = 0
    L(b), U(b)      lower and upper bound, nats
    x               thresholds in widths of the box: 0 at its low end, 1 at its high end

1. A trial that is d_k nats away from the distribution that maximises λ_k'r − K has P(b) >= λ_k'b + c_k with
   c_k = K_k − λ_k'R_k − d_k, which is −log Z(λ_k). No other trial may lie below: c_k is at most the least K_j − λ_k'R_j
   of all finished trials j, which keeps L below U where d_k is not known, or is too small. L is the largest of these
   tangents.
2. Sampling from trial k with probability w_k attains Σ w_k R_k at a KL of at most Σ w_k K_k (KL is convex), hence
   U(b) = min Σ w_k K_k over w on the simplex with Σ w_k R_k >= b. The dual of this linear program,
   max μ'b + ν over μ >= 0 with μ'R_k + ν <= K_k, has the same feasible set for every b: U is the largest of the
   affine functions (μ, ν) at its vertices, found once. With K = 0 and μ <= 1 the same vertices give the least total
   amount by which mixtures fall short of b.
3. Where one tangent is the largest, U − L is convex: over the box it is largest at a vertex of {(b, t): t >= L(b)}.
   Enumerating these is exact (the outer and inner hulls of sandwich algorithms: Rennen, van Dam & den Hertog 2011,
   "Enhancement of sandwich algorithms for approximating higher-dimensional convex Pareto sets"). Where mixtures reach
   only a part of the box, that part has too many vertices from five thresholds on: see ``frontier.pieces``.

Noise widens both: a trial counts in U with rewards lowered and KL raised by ``deviations`` standard errors, in L with
rewards raised and KL lowered. That covers c_k whatever the correlation of a trial's own errors. A feasible trial counts
as reaching its thresholds all the same, in both: it may miss them by the tolerance of the evaluation, and a box whose
far corner is missed by so much would otherwise be out of reach for ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from orchestrator.frontier.bounds.pieces import Pieces, center, vertices, widest

FloatArray = NDArray[np.float64]

ROUNDING = 1e-6
"""Widths by which a reward may always miss its threshold: an optimum that ends 1e-9 below counts as there."""
HIGHEST = 1e4
"""Nats: a lower bound of more, at the far corner of the box, is lowered to it."""
STEEPEST = 1e5
"""Largest slope of U, in units of the largest KL per width: steeper ones mean a miss of less than 1e-5 widths."""
_LISTED = 4
"""Free thresholds up to which the vertices of what mixtures reach are listed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FrontierPoint:
    """A finished trial, constrained or weighted."""

    rewards: FloatArray
    """``[m]``, expected, reward units."""
    kl: float
    """Nats."""
    multipliers: FloatArray | None = None
    """``[m]``, >= 0, nats per reward unit; None for a model that can be mixed but supports no tangent."""
    reward_errors: FloatArray | None = None
    """``[m]``, standard errors; None where the rewards are exact."""
    kl_error: float = 0.0
    """Standard error, nats."""
    distance: float = 0.0
    """KL to the optimum of its multipliers, nats; 0 for an optimum, or where it is not known."""
    met: FloatArray | None = None
    """``[m]``, thresholds that it was found to be feasible for, −inf where none, reward units; None if it was not."""

    def __post_init__(self) -> None:
        """Refuse what no finished trial can have.

        Raises:
            ValueError: A shape differs, a value is not finite, or a multiplier or an error is negative.
        """
        for name in ("multipliers", "reward_errors"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != self.rewards.shape:
                raise ValueError(f"{name} have shape {values.shape}, the rewards {self.rewards.shape}")
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ValueError(f"{name} must be finite and >= 0, got {values.tolist()}")
        if self.met is not None and (self.met.shape != self.rewards.shape or not (self.met < np.inf).all()):
            raise ValueError(f"thresholds met are one number for each reward, got {self.met.tolist()}")
        if not (np.isfinite(self.rewards).all() and np.isfinite(self.kl) and 0 <= self.kl_error < np.inf):
            raise ValueError(f"a finished trial has finite figures, got {self}")

    @property
    def errors(self) -> FloatArray:
        """Standard errors of the rewards: ``[m]``."""
        return np.zeros_like(self.rewards) if self.reward_errors is None else self.reward_errors

    def reaches(self, deviations: float) -> FloatArray:
        """Rewards that it is sure to reach, so many standard errors below the measured ones: ``[m]``."""
        careful = self.rewards - deviations * self.errors
        return careful if self.met is None else np.maximum(careful, self.met)

    @classmethod
    def pretrained(cls, rewards: FloatArray, errors: FloatArray | None = None) -> "FrontierPoint":
        """Return the pretrained model: KL 0, all prices 0."""
        return cls(rewards=rewards, kl=0.0, multipliers=np.zeros_like(rewards), reward_errors=errors)


@dataclass(frozen=True, kw_only=True, eq=False)
class Box:
    """The thresholds in question."""

    low: FloatArray
    """``[m]``, reward units."""
    high: FloatArray
    """``[m]``, above ``low``; equal to it where the threshold is fixed, but not everywhere."""
    spread: FloatArray | None = None
    """``[m]``, σ of the pretrained model's rewards: the scale of fixed thresholds and of first guesses. None is 1
    for fixed thresholds and the width of the others."""

    def __post_init__(self) -> None:
        """Check the ends.

        Raises:
            ValueError: They differ in length, are not finite, are reversed, or all equal; or a σ is not positive.
        """
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not len(self.low):
            raise ValueError(
                f"a box has two ends of one length, got shapes {self.low.shape} and {self.high.shape}"
            )
        finite = np.isfinite(self.low).all() and np.isfinite(self.high).all()
        if not (finite and (self.low <= self.high).all() and self.free.any()):
            raise ValueError(
                "thresholds must range from low to a higher end, "
                f"got {self.low.tolist()} to {self.high.tolist()}"
            )
        if self.spread is not None and not (self.spread.shape == self.low.shape and (self.spread > 0).all()):
            raise ValueError(f"every reward has a standard deviation above 0, got {self.spread.tolist()}")

    @property
    def free(self) -> NDArray[np.bool_]:
        """Thresholds that are not fixed: ``[m]``."""
        free: NDArray[np.bool_] = self.high > self.low
        return free

    @property
    def widths(self) -> FloatArray:
        """``[m]``, reward units; of a fixed threshold the scale of its reward."""
        fixed = np.ones_like(self.low) if self.spread is None else self.spread
        return np.where(self.free, self.high - self.low, fixed)

    def scaled(self, thresholds: FloatArray) -> FloatArray:
        """``[.., m]`` in widths above the low end."""
        return (thresholds - self.low) / self.widths

    def unscaled(self, scaled: FloatArray) -> FloatArray:
        """The inverse of ``scaled``."""
        return self.low + scaled * self.widths


class Bounds:
    """L and U from finished trials."""

    def __init__(self, points: Sequence[FrontierPoint], box: Box, *, deviations: float = 0.0) -> None:
        """Find the pieces of L; those of U are found when they are needed.

        Args:
            points: Finished trials, the pretrained model among them.
            box: Sets the scale of rewards, and the thresholds that ``turning_points`` looks at.
            deviations: Standard errors by which noise widens the bounds.
        """
        self.box = box
        kl = np.array([point.kl for point in points])
        kl_errors = deviations * np.array([point.kl_error for point in points])
        least, most = (
            box.scaled(np.array([point.reaches(errors) for point in points]))
            for errors in (deviations, -deviations)
        )
        self._rewards, self._kl = least, np.maximum(kl + kl_errors, 0.0)
        priced = [index for index, point in enumerate(points) if point.multipliers is not None]
        slopes = [points[index].multipliers * box.widths for index in priced]  # type: ignore[operator]
        away = np.array([points[index].distance for index in priced])
        self._lower = _tangents(np.array(slopes), most, kl - kl_errors, np.array(priced, dtype=np.intp), away)

    @cached_property
    def _upper(self) -> Pieces:
        return _mixtures(self._rewards, self._kl, STEEPEST)

    @cached_property
    def _shortfall(self) -> Pieces:
        return _mixtures(self._rewards, np.zeros_like(self._kl), 1.0)

    def lower(self, thresholds: FloatArray) -> FloatArray:
        """L, nats: thresholds ``[v, m]`` to ``[v]``."""
        return self._lower(self.box.scaled(thresholds))

    def upper(self, thresholds: FloatArray) -> FloatArray:
        """U, nats: thresholds ``[v, m]`` to ``[v]``; infinite where no mixture reaches them."""
        cost = np.maximum(self._upper(self.box.scaled(thresholds) - ROUNDING), 0.0)
        return np.where(self.shortfall(thresholds) > 0, np.inf, cost)

    def gaps(self, thresholds: FloatArray) -> FloatArray:
        """U − L, nats, not below 0: at a trial itself rounding makes U the smaller one."""
        return np.maximum(self.upper(thresholds) - self.lower(thresholds), 0.0)

    def mixture(self, thresholds: FloatArray) -> FloatArray:
        """Shares ``[k]`` of the mixture that attains U at thresholds ``[m]``; zeros where none reaches them."""
        wanted = self.box.scaled(thresholds) - ROUNDING
        solved = linprog(
            self._kl,
            A_ub=-self._rewards.T,
            b_ub=-wanted,
            A_eq=np.ones((1, len(self._kl))),
            b_eq=[1.0],
            bounds=(0.0, 1.0),
        )
        return np.zeros_like(self._kl) if solved.x is None else np.asarray(solved.x, dtype=np.float64)

    def shortfall(self, thresholds: FloatArray) -> FloatArray:
        """Least total of what mixtures miss, widths of the box: thresholds ``[v, m]`` to ``[v]``."""
        missing = self._shortfall(self.box.scaled(thresholds) - ROUNDING)
        return np.where(missing > 0.01 * ROUNDING, missing, 0.0)

    def prices(self, thresholds: FloatArray) -> FloatArray:
        """Slope of L at thresholds ``[m]``, the mean one at a kink: ``[m]``, nats per reward unit."""
        values = self._lower.slopes @ self.box.scaled(thresholds) + self._lower.offsets
        touching = values > values.max() - 1e-6 * (1.0 + abs(values.max()))
        slope: FloatArray = self._lower.slopes[touching].mean(axis=0) / self.box.widths
        return slope

    def reached(self) -> Pieces:
        """Thresholds that mixtures reach, as a region for ``turning_points``."""
        pieces = self._shortfall
        rising = pieces.slopes.sum(axis=1) > ROUNDING
        slopes, offsets = pieces.slopes[rising], pieces.offsets[rising]
        return Pieces(slopes=slopes, offsets=offsets - ROUNDING * slopes.sum(axis=1))

    @property
    def everywhere(self) -> bool:
        """Whether mixtures reach the far corner of the box, and with it all of it."""
        return not self.shortfall(self.box.high[None])[0] > 0

    def widest(self) -> FloatArray:
        """Thresholds ``[v, m]`` that mixtures reach, one of which has the largest U − L of all these; v may be 0."""
        if self.everywhere:
            return self.turning_points()
        reached = self.reached()
        if self.box.free.sum() <= _LISTED:
            listed = self.turning_points(reached)
            if np.isfinite(
                self.upper(listed)
            ).all():  # not where vertices had to be moved, some of them out of reach
                return listed
        if center(*self._sides(reached)) is None:
            return np.empty((0, len(self.box.low)))
        unit = float(self._kl.max()) if self._kl.any() else 1.0
        inside = (self._upper.slopes < 0.999 * STEEPEST * unit).all(axis=1)
        upper = Pieces(slopes=self._upper.slopes[inside], offsets=self._upper.offsets[inside])
        ends = self.box.free.astype(np.float64)
        return self.box.unscaled(widest(upper, self._lower, self._rewards, ends, slack=0.5 * ROUNDING))

    def turning_points(self, region: Pieces | None = None) -> FloatArray:
        """Thresholds ``[v, m]``, one of which has the largest U − L, and the largest shortfall, of a region.

        Args:
            region: Part of the box, in its widths; None is the whole. It may be empty, and then v is 0.
        """
        free = self.box.free
        slopes, offsets = self._sides(region)
        inside = center(slopes, offsets)
        if inside is None:
            return np.empty((0, len(free)))
        lower = Pieces(slopes=self._lower.slopes[:, free], offsets=self._lower.offsets)
        # The far end of the box has the highest L; one nat above it the epigraph is cut off.
        top = float(lower(np.ones((1, len(inside))))[0]) + 1.0
        floor = float(lower(inside[None])[0])
        sides = np.column_stack([slopes, np.zeros(len(slopes))])
        lid = np.append(np.zeros(len(inside)), 1.0)
        found = vertices(
            np.concatenate(
                [np.column_stack([lower.slopes, np.full(len(lower.slopes), -1.0)]), sides, lid[None]]
            ),
            np.concatenate([lower.offsets, offsets, [-top]]),
            np.append(inside, 0.5 * (floor + top)),
        )
        found = found[found[:, -1] < top - 1e-9, :-1]
        scaled = np.zeros((len(found), len(free)))
        scaled[:, free] = np.clip(found, 0.0, 1.0)
        return self.box.unscaled(scaled)

    def _sides(self, region: Pieces | None) -> tuple[FloatArray, FloatArray]:
        """Half-spaces of the free thresholds, slopes ``[n, f]`` and offsets ``[n]``, whose intersection is a region."""
        free = self.box.free
        identity = np.eye(int(free.sum()))
        slopes = np.concatenate([identity, -identity])
        offsets = np.concatenate([np.full(len(identity), -1.0), np.zeros(len(identity))])
        if region is None:
            return slopes, offsets
        # A fixed threshold is 0 widths up.
        return np.concatenate([slopes, region.slopes[:, free]]), np.concatenate([offsets, region.offsets])


def _tangents(
    slopes: FloatArray, rewards: FloatArray, kl: FloatArray, own: NDArray[np.intp], away: FloatArray
) -> Pieces:
    """Step 1, in widths: slopes ``[t, m]``, rewards ``[k, m]`` and KL ``[k]`` as L sees them.

    Args:
        slopes: λ of the trials that have any.
        rewards: Of all trials.
        kl: Of all trials.
        own: ``[t]``, which trial each slope is of.
        away: ``[t]``, d, nats.
    """
    count = rewards.shape[1]
    slopes = slopes.reshape(-1, count)
    spent = kl - slopes @ rewards.T  # [t, k]
    offsets = np.minimum(spent.min(axis=1, initial=np.inf), spent[np.arange(len(own)), own] - away)
    slopes = np.concatenate([np.zeros((1, count)), slopes])  # KL is never negative
    offsets = np.concatenate([[0.0], offsets])
    # The mean of a bound and 0 is one too: what a runaway multiplier says fits into doubles.
    shrink = HIGHEST / np.maximum(slopes.sum(axis=1) + offsets, HIGHEST)
    pieces = np.unique(shrink[:, None] * np.column_stack([slopes, offsets]), axis=0)
    return Pieces(slopes=pieces[:, :-1], offsets=pieces[:, -1])


def _mixtures(rewards: FloatArray, kl: FloatArray, steepest: float) -> Pieces:
    """Step 2: vertices of the dual, with μ at most ``steepest`` times the largest KL."""
    count, size = rewards.shape
    unit = float(kl.max()) if kl.any() else 1.0
    identity = np.eye(size)
    lowest = -steepest * (1.0 + float(np.abs(rewards).sum(axis=1).max())) - 10.0
    sides = np.concatenate([identity, -identity])
    normals = np.concatenate(
        [
            np.column_stack([rewards, np.ones(count)]),
            np.column_stack([sides, np.zeros(2 * size)]),
            np.append(np.zeros(size), -1.0)[None],  # ν has a lower end only to make the set bounded
        ]
    )
    offsets = np.concatenate([-kl / unit, np.full(size, -steepest), np.zeros(size), [lowest]])
    start = np.full(size, 0.5)
    inside = np.append(start, float((kl / unit - rewards @ start).min()) - 0.5)
    slopes = unit * np.clip(vertices(normals, offsets, inside)[:, :-1], 0.0, steepest)
    # The largest ν that its μ allows: whatever rounding did to a vertex, no piece is above what mixtures cost.
    return Pieces(slopes=slopes, offsets=-Pieces(slopes=rewards, offsets=-kl)(slopes))
