"""Finished trials as points of the frontier: what bounds, mixtures and searches are made from."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from orchestrator.frontier.bounds.bounds import FloatArray, FrontierPoint
from orchestrator.frontier.trials import Trials
from trainers.config import TrialConfig


def bounded(config: TrialConfig) -> tuple[tuple[str, str], ...]:
    """Return name and reward of every reward constraint, in the order of the spec: the coordinates of points."""
    return tuple(config.targets.items())


def points_of(trials: Trials, coordinates: Sequence[tuple[str, str]]) -> list[FrontierPoint | None]:
    """Return every trial's point, or None where it has none: it failed, or its figures are not finite.

    Args:
        trials: ``n`` of them.
        coordinates: See ``bounded``; without such a constraint a reward has no threshold.
    """
    count = len(trials)
    nothing = np.full(count, np.nan)

    def columns(of: Iterable[FloatArray]) -> FloatArray:
        return np.column_stack([np.zeros((count, 0)), *of])  # [n, m]

    weighted = trials.methods == "weighted"
    rewards = columns(trials.rewards[target].mean for _, target in coordinates)
    errors = columns(trials.rewards[target].error for _, target in coordinates)
    met = columns(trials.thresholds.get(name, nothing) for name, _ in coordinates)
    prices = columns(
        np.where(weighted, trials.weights[target], trials.multipliers.get(name, nothing))
        for name, target in coordinates
    )
    # Without a threshold a reward has no multiplier: it is free.
    prices = np.where(np.isnan(prices) & np.isnan(met), 0.0, prices)
    kl, kl_errors = trials.kl.mean, trials.kl.error
    whole = np.all(np.isfinite(np.column_stack([rewards, errors, kl, kl_errors])), axis=1)
    usable = np.all(np.isfinite(prices), axis=1) & (trials.statuses == "succeeded")
    feasible = trials.feasible & ~weighted
    return [
        FrontierPoint(
            rewards=rewards[row],
            kl=max(float(kl[row]), 0.0),
            multipliers=np.maximum(prices[row], 0.0) if usable[row] else None,
            reward_errors=errors[row],
            kl_error=float(kl_errors[row]),
            distance=float(np.nan_to_num(trials.distances[row])),
            met=np.nan_to_num(met[row], nan=-np.inf) if feasible[row] else None,
        )
        if whole[row] and trials.statuses[row] != "failed"
        else None
        for row in range(count)
    ]


def mean_point(points: Sequence[FrontierPoint]) -> FrontierPoint:
    """Return the mean of several seeds' points of one setting."""
    first, count = points[0], len(points)
    if count == 1:
        return first
    priced = [point.multipliers for point in points if point.multipliers is not None]
    return FrontierPoint(
        rewards=np.mean([point.rewards for point in points], axis=0),
        kl=float(np.mean([point.kl for point in points])),
        multipliers=np.mean(priced, axis=0) if len(priced) == count else None,
        reward_errors=np.sqrt(np.sum([point.errors**2 for point in points], axis=0)) / count,
        kl_error=float(np.sqrt(sum(point.kl_error**2 for point in points))) / count,
        distance=float(np.mean([point.distance for point in points])),
        met=first.met if all(point.met is not None for point in points) else None,
    )


def pretrained_point(
    pretrained: Mapping[str, tuple[float, float]], coordinates: Sequence[tuple[str, str]]
) -> FrontierPoint:
    """Return the pretrained model's point, from mean and standard error of its rewards."""
    means = np.array([pretrained[target][0] for _, target in coordinates])
    errors = np.array([pretrained[target][1] for _, target in coordinates])
    return FrontierPoint.pretrained(means, errors)
