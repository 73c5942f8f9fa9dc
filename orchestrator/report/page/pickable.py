"""What ``cdsweep pick`` chooses from, to the last digit: a page that picks by the same rule picks the same trial."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.frontier.bounds import NEGLIGIBLE, ROUNDING, FrontierPoint
from orchestrator.frontier.dominance import non_dominated
from orchestrator.frontier.feasibility import joint_deviations
from orchestrator.frontier.trials import Trials
from orchestrator.report.picked import candidates
from trainers.config import BaselineStatistics

_PRUNED = 2000
"""Candidates above which dominated ones are left out: of them a pick takes none."""


def pickable(
    trials: Trials, baseline: BaselineStatistics, pretrained: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """Return candidates and the constants of the rule.

    Candidates are columns: ``ids`` (the pretrained model first), ``kl`` and its standard errors ``kl_errors``,
    ``rewards_measured``, ``reward_errors``, ``reaches`` (a feasible trial reaches its thresholds, for bounds alone),
    ``multipliers`` ``[k, m]``, a row of multipliers null where there are none, and ``distances`` from their optimum.
    ``units`` scale rewards, ``deviations`` are σ of the pretrained model, ``sought`` the rewards that a KL budget
    improves together (all, if none), with those that have a threshold where ``joined`` says so, and ``margins`` the
    standard errors to bounds of one figure, of two that hold together, and so on.
    """
    return columns_of(candidates(trials, pretrained), trials, baseline)


def columns_of(
    found: Sequence[tuple[str, FrontierPoint]], trials: Trials, baseline: BaselineStatistics
) -> dict[str, Any]:
    """Return the same of any candidates, by id, in the rewards of these trials; the first is the pretrained model."""
    names, objective = list(trials.rewards), trials.config.objective
    maximised = objective.kind == "reward"
    points = [point for _, point in found]
    reaches = np.array([point.reaches(0.0) for point in points])
    spread = np.ptp(reaches, axis=0)
    kl = np.array([point.kl for point in points])
    measured = np.array([point.rewards for point in points])
    errors = np.array([point.errors for point in points])
    kl_errors = np.array([point.kl_error for point in points])
    margins = [joint_deviations(asked) for asked in range(1, len(names) + 2)]
    kept = list(range(len(found)))
    if len(found) > _PRUNED:
        # What is no better at either end of the widest interval is no better at any confidence.
        wide, kl_wide = margins[-1] * errors, margins[-1] * kl_errors
        ends = [kl - kl_wide, kl + kl_wide, wide - measured, -np.maximum(measured + wide, reaches)]
        best = non_dominated(np.column_stack(ends))
        best[0] = True
        kept = np.flatnonzero(best).tolist()
    return {
        "rewards": names,
        "sought": [objective.target] if maximised else list(trials.sought),
        "joined": not maximised,
        "margins": margins,
        "units": np.where(spread > 0, spread, 1.0).tolist(),
        "deviations": [baseline.rewards[name].std for name in names],
        "rounding": ROUNDING,
        "negligible": NEGLIGIBLE,
        "ids": [found[row][0] for row in kept],
        "kl": [float(kl[row]) for row in kept],
        "reaches": [reaches[row].tolist() for row in kept],
        "kl_errors": [float(kl_errors[row]) for row in kept],
        "rewards_measured": [measured[row].tolist() for row in kept],
        "reward_errors": [errors[row].tolist() for row in kept],
        "multipliers": [_listed(points[row].multipliers) for row in kept],
        "distances": [points[row].distance for row in kept],
    }


def _listed(values: Any) -> list[float] | None:
    return None if values is None else values.tolist()
