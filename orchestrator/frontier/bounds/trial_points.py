"""Finished trials as points of the frontier: what bounds, mixtures and searches are made from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.frontier.bounds.bounds import FrontierPoint
from orchestrator.frontier.feasibility import standard_error
from trainers.config import TrialConfig

Row = Mapping[str, Any]
"""One row of ``trials/*.parquet``, by column."""


def bounded(config: TrialConfig) -> tuple[tuple[str, str], ...]:
    """Return name and reward of every reward constraint, in the order of the spec: the coordinates of points."""
    return tuple((c.name, c.target) for c in config.constraints if c.kind == "reward")


def point_of(row: Row, coordinates: Sequence[tuple[str, str]]) -> FrontierPoint | None:
    """Return a trial's point, or None where it has none: it failed, or its figures are not finite.

    Args:
        row: Of the table of trials.
        coordinates: See ``bounded``.
    """
    if row["status"] == "failed" or row.get("kl") is None:
        return None
    weighted = row["method"] == "weighted"
    rewards, errors, multipliers, met = [], [], [], []
    for name, target in coordinates:
        rewards.append(_real(row, f"reward_{target}"))
        ends = _real(row, f"reward_{target}_low"), _real(row, f"reward_{target}_high")
        errors.append(float(standard_error(*ends)))
        met.append(_real(row, f"threshold_{name}"))
        price = _real(row, f"weight_{target}" if weighted else f"multiplier_{name}")
        # Without a threshold a reward has no multiplier: it is free.
        free = np.isnan(price) and np.isnan(met[-1])
        multipliers.append(0.0 if free else price)
    error = float(standard_error(_real(row, "kl_low"), _real(row, "kl_high")))
    figures = np.array([*rewards, *errors, row["kl"], error])
    if not np.isfinite(figures).all():
        return None
    prices = np.array(multipliers)
    usable = bool(np.isfinite(prices).all()) and row["status"] == "succeeded"
    feasible = bool(row.get("feasible")) and not weighted
    return FrontierPoint(
        rewards=np.array(rewards),
        kl=max(float(row["kl"]), 0.0),
        multipliers=np.maximum(prices, 0.0) if usable else None,
        reward_errors=np.array(errors),
        kl_error=error,
        met=np.nan_to_num(np.array(met), nan=-np.inf) if feasible else None,
    )


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
        met=first.met if all(point.met is not None for point in points) else None,
    )


def pretrained_point(
    pretrained: Mapping[str, tuple[float, float]], coordinates: Sequence[tuple[str, str]]
) -> FrontierPoint:
    """Return the pretrained model's point, from mean and standard error of its rewards."""
    means = np.array([pretrained[target][0] for _, target in coordinates])
    errors = np.array([pretrained[target][1] for _, target in coordinates])
    return FrontierPoint.pretrained(means, errors)


def _real(row: Row, name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None else float(value)
