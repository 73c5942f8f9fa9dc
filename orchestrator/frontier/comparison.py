"""What constraints bought: every threshold combination against the best weights that meet it.

A *setting* is a trial without its seed. Its figures are means over its seeds, its standard errors those of
the evaluation samples, pooled. A setting meets thresholds if the one-sided 95 % bound of every violation is
within tolerance; constrained and weighted settings are judged by the same rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.frontier.feasibility import TWO_SIDED, standard_error, tolerance, upper_bound
from trainers.config import BaselineStatistics, TrialConfig

FloatArray = NDArray[np.float64]
Verdict = Literal["none meets", "constrained better", "alike", "weighted better"]

SMALL_KL = 1e-3
"""Nats below which a ratio of two KLs says nothing."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One threshold combination: the constrained setting, and the best weighted one that meets it.

    The objective is the KL in nats, or the reward that is maximised, in its units.
    """

    thresholds: Mapping[str, float]
    seeds: int
    met: bool
    """Whether the constrained setting meets its own thresholds."""
    kl: float
    objective: float
    rival: Mapping[str, float] | None
    """Weights of the best weighted setting that meets the thresholds, nats per reward unit."""
    rival_kl: float | None
    rival_objective: float | None
    ratio: float | None
    """KL of the rival divided by that of the constrained setting; None for a reward objective."""
    verdict: Verdict
    """By the two-sided 95 % interval of the difference of the objectives."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """``n`` settings: means over their seeds, and standard errors of these means."""

    keys: FloatArray  # [n, thresholds or weights]
    seeds: NDArray[np.int64]  # [n]
    kl: FloatArray  # [n]
    kl_error: FloatArray  # [n]
    rewards: Mapping[str, FloatArray]  # [n]
    reward_errors: Mapping[str, FloatArray]  # [n]


def real(table: pa.Table, name: str) -> FloatArray:
    """A numeric column as ``[n]`` floats; NaN where it is null or the column is missing."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(pc.cast(table[name], pa.float64()).to_numpy(), dtype=np.float64)


def compare(
    trials: pa.Table, config: TrialConfig, baseline: BaselineStatistics
) -> tuple[tuple[Cell, ...], int]:
    """Compare constrained with weighted settings.

    Args:
        trials: Rows of ``trials/*.parquet``; only those that succeeded count.
        config: Any trial of the sweep: its rewards, constraints, objective and tolerance are those of all.
        baseline: Standard deviations, which the tolerance refers to.

    Returns:
        One cell per threshold combination with a constrained trial that succeeded, and the number of
        weighted settings.
    """
    usable = trials.filter(pc.and_(pc.equal(trials["status"], "succeeded"), pc.is_valid(trials["kl"])))
    constraints = config.constraints
    names = [reward.name for reward in config.rewards]
    ours = _settings(_of(usable, "constrained"), [f"threshold_{c.name}" for c in constraints], names)
    rivals = _settings(_of(usable, "weighted"), [f"weight_{name}" for name in names], names)
    tolerances = np.array([tolerance(c, config.evaluation, baseline) for c in constraints])
    maximised = config.objective.target if config.objective.kind == "reward" else None

    def bounds(settings: _Settings, thresholds: FloatArray) -> FloatArray:
        """Violations' upper bounds of every setting at one combination: ``[n, constraints]``."""
        columns = [
            upper_bound(settings.kl - limit, settings.kl_error)
            if constraint.kind == "kl"
            else upper_bound(
                limit - settings.rewards[constraint.target], settings.reward_errors[constraint.target]
            )
            for constraint, limit in zip(constraints, thresholds, strict=True)
        ]
        return np.column_stack(columns) if columns else np.zeros((len(settings.kl), 0))

    def costs(settings: _Settings) -> tuple[FloatArray, FloatArray]:
        """What is minimised, with its standard error."""
        if maximised is None:
            return settings.kl, settings.kl_error
        return -settings.rewards[maximised], settings.reward_errors[maximised]

    our_costs, our_errors = costs(ours)
    rival_costs, rival_errors = costs(rivals)
    cells = []
    for index, thresholds in enumerate(ours.keys):
        applies = ~np.isnan(thresholds)
        met = (bounds(ours, thresholds)[index] <= tolerances)[applies].all()
        meeting = (bounds(rivals, thresholds) <= tolerances)[:, applies].all(axis=1)
        best = int(np.argmin(np.where(meeting, rival_costs, np.inf))) if meeting.any() else None
        verdict: Verdict = "none meets"
        ratio = None
        if best is not None:
            difference = rival_costs[best] - our_costs[index]
            margin = TWO_SIDED * np.hypot(our_errors[index], rival_errors[best])
            alike = abs(difference) <= margin
            verdict = "alike" if alike else "constrained better" if difference > 0 else "weighted better"
            if maximised is None and ours.kl[index] > SMALL_KL:
                ratio = float(rivals.kl[best] / ours.kl[index])
        sign = 1.0 if maximised is None else -1.0
        cells.append(
            Cell(
                thresholds=_named([c.name for c in constraints], thresholds),
                seeds=int(ours.seeds[index]),
                met=bool(met),
                kl=float(ours.kl[index]),
                objective=float(sign * our_costs[index]),
                rival=None if best is None else _named(names, rivals.keys[best]),
                rival_kl=None if best is None else float(rivals.kl[best]),
                rival_objective=None if best is None else float(sign * rival_costs[best]),
                ratio=ratio,
                verdict=verdict,
            )
        )
    return tuple(cells), len(rivals.kl)


def _of(trials: pa.Table, method: str) -> pa.Table:
    return trials.filter(pc.equal(trials["method"], method))


def _named(names: list[str], values: FloatArray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True) if not np.isnan(value)}


def _settings(trials: pa.Table, keys: list[str], rewards: list[str]) -> _Settings:
    """Trials with equal key columns become one setting."""
    matrix = np.column_stack([real(trials, key) for key in keys]) if keys else np.zeros((trials.num_rows, 0))
    # NaN differs from itself, so it would make a group of every row.
    unique, labels = np.unique(np.nan_to_num(matrix, nan=np.inf), axis=0, return_inverse=True)
    labels, count = labels.reshape(-1), len(unique)
    seeds = np.bincount(labels, minlength=count)

    def mean(values: FloatArray) -> FloatArray:
        return np.bincount(labels, weights=values, minlength=count) / seeds

    def pooled(prefix: str) -> FloatArray:
        errors = standard_error(real(trials, f"{prefix}_low"), real(trials, f"{prefix}_high"))
        return np.sqrt(np.bincount(labels, weights=errors**2, minlength=count)) / seeds

    return _Settings(
        keys=np.where(np.isinf(unique), np.nan, unique),
        seeds=seeds,
        kl=mean(real(trials, "kl")),
        kl_error=pooled("kl"),
        rewards={name: mean(real(trials, f"reward_{name}")) for name in rewards},
        reward_errors={name: pooled(f"reward_{name}") for name in rewards},
    )
