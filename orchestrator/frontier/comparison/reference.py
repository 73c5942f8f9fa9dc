"""Where hypervolumes end: one reference point of a sweep, from what it asked for.

A hypervolume counts up to a reference point, and with it changes the ranking of methods. So it must not hang on the
worst trial. Here it is the volume of the thresholds that a method reaches, times the KL that it saves on the way:

    KL        the largest budget; without budgets twice the KL at which the tightest thresholds are first reached
              (where nothing reaches all of them, the largest KL of a trial that no other one dominates)
    rewards   from the pretrained mean, or one σ below the tightest threshold where that is lower, up to the tightest
              threshold: what a trial reaches beyond it, within the tolerance of feasibility, was not asked for

A trial for a box of thresholds was asked for all of them: though its row is at the loosest, rewards count up to the
tightest of its box. A trial that another one dominates moves none of these. Everything is minimised here, as in
``dominance``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.dominance import non_dominated
from orchestrator.frontier.feasibility import tolerance
from orchestrator.frontier.trials import Trials
from trainers.config import BaselineStatistics

FloatArray = NDArray[np.float64]

MARGIN = 2.0
"""KL of the reference point as a multiple of that at which the tightest thresholds are reached: who pays twice as much,
adds nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Both ends of what hypervolumes of a sweep count."""

    point: FloatArray
    """``[1 + m]``, KL and negated rewards: the worst."""
    goal: FloatArray
    """``[1 + m]``, beyond which nothing counts; −inf where there is no end."""

    def counted(self, points: FloatArray) -> FloatArray:
        """Points ``[n, 1 + m]`` as far as they count; NaN stays."""
        return np.maximum(points, self.goal)


def reference_of(trials: Trials, baseline: BaselineStatistics) -> Reference:
    """Return the reference of a sweep.

    Args:
        trials: Whose thresholds say what was asked, and those that succeeded what was reached.
        baseline: Statistics of the rewards under the pretrained model.
    """
    config = trials.config
    tightest_of = {
        name: float(np.nanmax(asked, initial=trials.tightest.get(name, -np.inf)))
        for name, asked in trials.thresholds.items()
    }
    goal, worst = [-np.inf], []
    for name in trials.sought:
        known, tightest = baseline.rewards[name], -np.inf
        for constraint in config.constraints:
            if constraint.kind == "reward" and constraint.target == name:
                misses = tolerance(constraint, config.evaluation, baseline)
                tightest = max(tightest, tightest_of[constraint.name] - misses)
        goal.append(-tightest if np.isfinite(tightest) else -np.inf)
        worst.append(
            -known.mean if not tightest <= known.mean or np.isinf(tightest) else known.std - tightest
        )
    budgets = [tightest_of[constraint.name] for constraint in config.constraints if constraint.kind == "kl"]
    found = Reference(point=np.array([0.0, *worst]), goal=np.array(goal))
    highest = max(budgets, default=-np.inf)
    if not np.isfinite(highest):
        reached = trials.points[trials.succeeded]
        highest = MARGIN * _dearest(found.counted(reached), found.goal)
    return Reference(point=np.array([highest, *worst]), goal=found.goal)


def _dearest(points: FloatArray, goal: FloatArray) -> float:
    """Largest KL of a point that no other one dominates: that of the first at the goal, if one is there."""
    points = points[np.isfinite(points[:, 0]) & ~np.isnan(points).any(axis=1)]
    if not len(points):
        return 0.0
    there = (points[:, 1:] <= goal[1:]).all(axis=1)
    if there.any():
        return float(points[there, 0].min())
    return float(points[non_dominated(points), 0].max())
