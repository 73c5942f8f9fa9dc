"""What constraints bought: every threshold combination against the best weights that meet it.

A *setting* is a trial without its seed. Its figures are means over its seeds, its standard errors those of
the evaluation samples, pooled. A setting meets thresholds if the one-sided 95 % bound of every violation is
within tolerance; constrained and weighted settings are judged by the same rule.
"""

import math
from collections.abc import Mapping, Sequence
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
_BLOCK = 256
"""Settings that are compared with all thresholds at once."""


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
class Settings:
    """``n`` settings of ``t`` trials: means over their seeds, and standard errors of these means."""

    labels: NDArray[np.intp]  # [t], the setting of every trial
    keys: FloatArray  # [n, thresholds or weights]
    seeds: NDArray[np.int64]  # [n]
    kl: FloatArray  # [n]
    kl_error: FloatArray  # [n]
    rewards: Mapping[str, FloatArray]  # [n]
    reward_errors: Mapping[str, FloatArray]  # [n]

    def mean(self, values: FloatArray) -> FloatArray:
        """Mean over the seeds of every setting, of one value per trial: ``[t]`` to ``[n]``."""
        return _mean(values, self.labels, self.seeds)


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
    constraints = config.constraints
    names = [reward.name for reward in config.rewards]
    usable = _measured(trials)
    ours = settings_of(_of(usable, "constrained"), [f"threshold_{c.name}" for c in constraints], names)
    rivals = settings_of(_of(usable, "weighted"), [f"weight_{name}" for name in names], names)
    tolerances = [tolerance(c, config.evaluation, baseline) for c in constraints]
    maximised = config.objective.target if config.objective.kind == "reward" else None

    def reach(settings: Settings) -> FloatArray:
        """The tightest threshold that every setting meets, larger is tighter: ``[n, constraints]``."""
        columns = [
            -upper_bound(settings.kl, settings.kl_error) / (1.0 + slack)
            if constraint.kind == "kl"
            else slack
            - upper_bound(-settings.rewards[constraint.target], settings.reward_errors[constraint.target])
            for constraint, slack in zip(constraints, tolerances, strict=True)
        ]
        # What was not measured meets nothing, and what is not asked for is met by all.
        return np.nan_to_num(_columns(columns, len(settings.kl)), nan=-np.inf)

    def costs(settings: Settings) -> tuple[FloatArray, FloatArray]:
        """What is minimised, with its standard error."""
        if maximised is None:
            return settings.kl, settings.kl_error
        return -settings.rewards[maximised], settings.reward_errors[maximised]

    signs = np.array([-1.0 if constraint.kind == "kl" else 1.0 for constraint in constraints])
    asked = np.nan_to_num(ours.keys * signs, nan=-np.inf)
    our_costs, our_errors = costs(ours)
    rival_costs, rival_errors = costs(rivals)
    best = _cheapest(asked, reach(rivals), rival_costs)  # [n]
    met = (asked <= reach(ours)).all(axis=1)

    # One row more, so that "none meets", -1, has something to point at.
    padded = {
        key: np.append(values, np.nan)
        for key, values in (("kl", rivals.kl), ("cost", rival_costs), ("error", rival_errors))
    }
    differences = padded["cost"][best] - our_costs
    alike = np.abs(differences) <= TWO_SIDED * np.hypot(our_errors, padded["error"][best])
    ratios = np.full(len(best), np.nan)
    if maximised is None:
        np.divide(padded["kl"][best], ours.kl, out=ratios, where=ours.kl > SMALL_KL)

    sign = 1.0 if maximised is None else -1.0
    constraint_names = [c.name for c in constraints]
    our_keys, rival_keys = ours.keys.tolist(), rivals.keys.tolist()
    cells = []
    for index, rival in enumerate(best.tolist()):
        found = rival >= 0
        verdict: Verdict = "none meets"
        if found and alike[index]:
            verdict = "alike"
        elif found:
            verdict = "constrained better" if differences[index] > 0 else "weighted better"
        cells.append(
            Cell(
                thresholds=_named(constraint_names, our_keys[index]),
                seeds=int(ours.seeds[index]),
                met=bool(met[index]),
                kl=float(ours.kl[index]),
                objective=float(sign * our_costs[index]),
                rival=_named(names, rival_keys[rival]) if found else None,
                rival_kl=float(rivals.kl[rival]) if found else None,
                rival_objective=float(sign * rival_costs[rival]) if found else None,
                ratio=float(ratios[index]) if found and np.isfinite(ratios[index]) else None,
                verdict=verdict,
            )
        )
    return tuple(cells), len(rivals.kl)


def _cheapest(asked: FloatArray, reach: FloatArray, costs: FloatArray) -> NDArray[np.intp]:
    """For every row of ``asked`` ``[n, m]`` the cheapest setting that reaches it everywhere: ``[n]``, -1 if none does.

    Args:
        asked: What has to be reached; -inf where nothing is asked.
        reach: ``[k, m]``, how far each setting reaches.
        costs: ``[k]``; a setting without one, NaN, is never chosen. Of equal ones the first is.
    """
    order = np.argsort(costs, kind="stable")[: int(np.isfinite(costs).sum())]
    levels = [np.unique(column) for column in asked.T]
    nodes = math.prod(len(distinct) for distinct in levels)
    on_lattice = bool(levels) and nodes <= len(asked) * len(order)  # a grid of thresholds
    first = _on_lattice(asked, reach[order], levels) if on_lattice else _in_turn(asked, reach[order])
    return np.append(order, -1)[first]


def _on_lattice(asked: FloatArray, reach: FloatArray, levels: Sequence[FloatArray]) -> NDArray[np.intp]:
    """First row of ``reach`` that reaches each row of ``asked``, ``len(reach)`` if none does: ``[n]``.

    Every row is put on the lattice of all levels where it just reaches, and the first one is handed down each axis.
    """
    lattice = np.full([len(distinct) for distinct in levels], len(reach), dtype=np.intp)
    steps = [
        np.searchsorted(distinct, column, side="right") - 1
        for distinct, column in zip(levels, reach.T, strict=True)
    ]
    rows = np.flatnonzero(np.all([step >= 0 for step in steps], axis=0))
    np.minimum.at(lattice, tuple(step[rows] for step in steps), rows)
    for axis in range(lattice.ndim):
        lattice = np.flip(np.minimum.accumulate(np.flip(lattice, axis), axis=axis), axis)
    found: NDArray[np.intp] = lattice[
        tuple(np.searchsorted(distinct, column) for distinct, column in zip(levels, asked.T, strict=True))
    ]
    return found


def _in_turn(asked: FloatArray, reach: FloatArray) -> NDArray[np.intp]:
    """The same by comparison, for thresholds that make no grid."""
    first = np.full(len(asked), len(reach), dtype=np.intp)
    for begin in range(0, len(reach), _BLOCK):
        left = np.flatnonzero(first == len(reach))
        meets: NDArray[np.bool_] = np.all(asked[left, None, :] <= reach[begin : begin + _BLOCK], axis=2)
        found = meets.any(axis=1)
        first[left[found]] = begin + meets[found].argmax(axis=1)
    return first


def _columns(columns: Sequence[FloatArray], rows: int) -> FloatArray:
    return np.column_stack(columns) if columns else np.zeros((rows, 0))


def _measured(trials: pa.Table) -> pa.Table:
    """Trials that succeeded, without the columns that a filter of a large sweep would copy for nothing."""
    kinds = ("method", "kl", "reward_", "threshold_", "weight_")
    kept = pc.and_(pc.equal(trials["status"], "succeeded"), pc.is_finite(trials["kl"]))
    return trials.select([name for name in trials.column_names if name.startswith(kinds)]).filter(kept)


def _of(trials: pa.Table, method: str) -> pa.Table:
    return trials.filter(pc.equal(trials["method"], method))


def _named(names: list[str], values: list[float]) -> dict[str, float]:
    return {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}


def settings_of(trials: pa.Table, keys: list[str], rewards: list[str]) -> Settings:
    """Trials with equal key columns become one setting."""
    matrix = _columns([real(trials, key) for key in keys], trials.num_rows)
    # NaN differs from itself, so it would make a group of every row.
    filled = np.nan_to_num(matrix, nan=np.inf)
    order = np.lexsort([np.zeros(len(filled)), *filled.T[::-1]])
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (filled[order[1:]] != filled[order[:-1]]).any(axis=1)
    labels = np.empty(len(order), dtype=np.intp)
    labels[order] = np.cumsum(first) - 1
    seeds = np.bincount(labels, minlength=int(first.sum()))

    def mean(name: str) -> FloatArray:
        return _mean(real(trials, name), labels, seeds)

    def pooled(name: str) -> FloatArray:
        errors = standard_error(real(trials, f"{name}_low"), real(trials, f"{name}_high"))
        return np.sqrt(_mean(errors**2, labels, seeds) / seeds)

    return Settings(
        labels=labels,
        keys=matrix[order[first]],
        seeds=seeds,
        kl=mean("kl"),
        kl_error=pooled("kl"),
        rewards={name: mean(f"reward_{name}") for name in rewards},
        reward_errors={name: pooled(f"reward_{name}") for name in rewards},
    )


def _mean(values: FloatArray, labels: NDArray[np.intp], counts: NDArray[np.int64]) -> FloatArray:
    means: FloatArray = np.bincount(labels, weights=values, minlength=len(counts)) / counts
    return means
