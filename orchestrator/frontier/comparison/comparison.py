"""What constraints bought: every threshold combination against the best weights that meet it.

A *setting* is a trial without its seed. Its figures are means over its seeds, its standard errors those of
the evaluation, which all seeds share: averaging over seeds does not shrink them. A setting meets thresholds if the
one-sided 95 % bound of every violation is within tolerance; constrained and weighted settings are judged by the same
rule.

A verdict is about seeds that were not run, and about the best of ``K`` weighted settings that meet the thresholds. With
costs ``c_s`` of the constrained setting and ``r_ks`` of the rivals in seed s of n, both are one-sided t tests at 2.5 %:

    constrained better   d_s = min_k r_ks − c_s        the best rival of every seed, chosen in hindsight: its mean is
                                                       at most the best rival's, whichever that is
    weighted better      d_s = c_s − r_ks, k = k(−s)   the rival that is cheapest in the other seeds, so that nobody
                                                       is chosen by the figure that is compared

The differences of the second are not independent, the less so the more seeds share a choice; its level is divided by
min(K, n − 2), which keeps both kinds of false verdict together below 5 % (simulated: ``test_comparison.py``). The noise
of evaluation, which seeds do not show, widens either interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from orchestrator.frontier.feasibility import TWO_SIDED, tolerance, upper_bound
from orchestrator.frontier.trials import SMALL_KL, Measured, Trials
from trainers.config import BaselineStatistics, TrialConfig

FloatArray = NDArray[np.float64]
Verdict = Literal["none meets", "constrained better", "undecided", "weighted better"]

_LEVEL = 0.025
"""Of each of the two verdicts."""

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
    paired: int
    """Seeds in which both were compared."""
    verdict: Verdict
    """Undecided with fewer than two paired seeds, where the constrained setting misses its thresholds, or where the
    seeds and the noise of evaluation do not tell the two apart."""


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

    def by_seed(self, values: FloatArray, seeds: NDArray[np.intp], count: int) -> FloatArray:
        """One value per trial, ``[t]``, in the place of its seed: ``[n, count]``, NaN where there is none."""
        placed = np.full((len(self.seeds), count), np.nan)
        placed[self.labels, seeds] = values
        return placed

    def mean(self, values: FloatArray) -> FloatArray:
        """Mean over the seeds of every setting, of one value per trial: ``[t]`` to ``[n]``."""
        return _mean(values, self.labels, self.seeds)


def compare(trials: Trials, baseline: BaselineStatistics) -> tuple[tuple[Cell, ...], int]:
    """Compare constrained with weighted settings.

    Args:
        trials: Only those that succeeded count.
        baseline: Standard deviations, which the tolerance refers to.

    Returns:
        One cell per threshold combination with a constrained trial that succeeded, and the number of
        weighted settings.
    """
    config, constraints = trials.config, trials.config.constraints
    names = [reward.name for reward in config.rewards]
    usable = trials.take(trials.succeeded)
    ours, rivals = usable.of_method("constrained"), usable.of_method("weighted")
    mine = settings_of(ours, list(ours.thresholds.values()))
    theirs = settings_of(rivals, [rivals.weights[name] for name in names])
    maximised = config.objective.target if config.objective.kind == "reward" else None
    # What is minimised: the KL, or the negated reward.
    sign = 1.0 if maximised is None else -1.0
    every = np.unique(usable.seeds)
    our_costs, rival_costs = (
        _Costs(
            mean=sign * (settings.kl if maximised is None else settings.rewards[maximised]),
            error=settings.kl_error if maximised is None else settings.reward_errors[maximised],
            by_seed=settings.by_seed(
                sign * (tried.kl if maximised is None else tried.rewards[maximised]).mean,
                np.searchsorted(every, tried.seeds),
                len(every),
            ),
        )
        for settings, tried in ((mine, ours), (theirs, rivals))
    )
    asked = tightness(mine.keys, config)
    reached = reach(theirs, config, baseline)
    best = _cheapest(asked, reached, rival_costs.mean)  # [n]
    met = np.all(asked <= reach(mine, config, baseline), axis=1)
    paired, better = _verdicts(asked, reached, our_costs, rival_costs, best)

    # One row more, so that "none meets", -1, has something to point at.
    ratios = np.full(len(best), np.nan)
    if maximised is None:
        np.divide(np.append(theirs.kl, np.nan)[best], mine.kl, out=ratios, where=mine.kl > SMALL_KL)

    constraint_names = [c.name for c in constraints]
    our_keys, rival_keys = mine.keys.tolist(), theirs.keys.tolist()
    cells = []
    for index, rival in enumerate(best.tolist()):
        found = rival >= 0
        verdict: Verdict = "undecided" if found else "none meets"
        if found and met[index] and better[index]:
            verdict = "constrained better" if better[index] > 0 else "weighted better"
        cells.append(
            Cell(
                thresholds=_named(constraint_names, our_keys[index]),
                seeds=int(mine.seeds[index]),
                met=bool(met[index]),
                kl=float(mine.kl[index]),
                objective=float(sign * our_costs.mean[index]),
                rival=_named(names, rival_keys[rival]) if found else None,
                rival_kl=float(theirs.kl[rival]) if found else None,
                rival_objective=float(sign * rival_costs.mean[rival]) if found else None,
                ratio=float(ratios[index]) if found and np.isfinite(ratios[index]) else None,
                paired=int(paired[index]),
                verdict=verdict,
            )
        )
    return tuple(cells), len(theirs.kl)


def reach(settings: Settings, config: TrialConfig, baseline: BaselineStatistics) -> FloatArray:
    """The tightest threshold that every setting meets, larger is tighter: ``[n, constraints]``."""
    columns = []
    for constraint in config.constraints:
        slack = tolerance(constraint, config.evaluation, baseline)
        if constraint.kind == "kl":
            columns.append(-upper_bound(settings.kl, settings.kl_error) / (1.0 + slack))
        else:
            name = constraint.target
            columns.append(slack - upper_bound(-settings.rewards[name], settings.reward_errors[name]))
    # What was not measured meets nothing, and what is not asked for is met by all.
    return np.nan_to_num(_columns(columns, len(settings.kl)), nan=-np.inf)


def tightness(thresholds: FloatArray, config: TrialConfig) -> FloatArray:
    """Thresholds ``[.., constraints]``, larger is tighter; −inf where there is none."""
    signs = np.array([-1.0 if constraint.kind == "kl" else 1.0 for constraint in config.constraints])
    tight: FloatArray = np.nan_to_num(thresholds * signs, nan=-np.inf)
    return tight


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """What ``n`` settings cost, to be minimised."""

    mean: FloatArray  # [n]
    error: FloatArray  # [n], of the evaluation
    by_seed: FloatArray  # [n, seeds], NaN where there is no trial


def _verdicts(
    asked: FloatArray, reach: FloatArray, ours: _Costs, rivals: _Costs, best: NDArray[np.intp]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compare every setting with the rivals that reach what it was asked for.

    Only rivals with all seeds of a setting are compared; where the cheapest has not, nothing is.

    Returns:
        Seeds compared ``[n]``, and 1 where the setting is better, −1 where the best rival is, else 0: ``[n]``.
    """
    paired, better = np.zeros(len(asked), dtype=np.int64), np.zeros(len(asked), dtype=np.int64)
    patterns, of = np.unique(np.isfinite(ours.by_seed), axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        seeds = np.flatnonzero(pattern)
        whole = np.flatnonzero(np.isfinite(rivals.by_seed[:, seeds]).all(axis=1))
        rows = np.flatnonzero((of.ravel() == number) & np.isin(best, whole))
        if not len(rows) or not len(seeds):
            continue
        paired[rows] = len(seeds)
        if len(seeds) < 2:
            continue
        wanted, reached = asked[rows], reach[whole]
        mine, theirs = ours.by_seed[np.ix_(rows, seeds)], rivals.by_seed[np.ix_(whole, seeds)]
        total = theirs.sum(axis=1)
        least = np.empty_like(mine)  # the cheapest rival of every seed
        chosen = np.empty_like(mine)  # the one that is cheapest in the other seeds
        for place in range(len(seeds)):
            column = theirs[:, place]
            least[:, place] = column[_cheapest(wanted, reached, column)]
            chosen[:, place] = column[_cheapest(wanted, reached, total - column)]
        noise = TWO_SIDED * np.hypot(ours.error[rows], rivals.error[best[rows]])
        shared = min(len(whole), max(len(seeds) - 2, 1))
        better[rows] = np.where(_positive(least - mine, noise, _LEVEL), 1, 0) - np.where(
            _positive(mine - chosen, noise, _LEVEL / shared), 1, 0
        )
    return paired, better


def _positive(differences: FloatArray, noise: FloatArray, level: float) -> NDArray[np.bool_]:
    """Whether means over seeds of ``[n, seeds]`` are above 0, by Student's t and beyond other noise ``[n]``."""
    count = differences.shape[1]
    half = stdtrit(count - 1, 1.0 - level) * differences.std(axis=1, ddof=1) / np.sqrt(count)
    sure: NDArray[np.bool_] = differences.mean(axis=1) > np.hypot(half, np.nan_to_num(noise, nan=np.inf))
    return sure


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


def _named(names: list[str], values: list[float]) -> dict[str, float]:
    return {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}


def settings_of(trials: Trials, keys: Sequence[FloatArray]) -> Settings:
    """Trials with equal keys, ``[t]`` each, become one setting."""
    matrix = _columns(keys, len(trials))
    # NaN differs from itself, so it would make a group of every row.
    filled = np.nan_to_num(matrix, nan=np.inf)
    order = np.lexsort([np.zeros(len(filled)), *filled.T[::-1]])
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (filled[order[1:]] != filled[order[:-1]]).any(axis=1)
    labels = np.empty(len(order), dtype=np.intp)
    labels[order] = np.cumsum(first) - 1
    seeds = np.bincount(labels, minlength=int(first.sum()))

    def mean(figure: Measured) -> FloatArray:
        return _mean(figure.mean, labels, seeds)

    def pooled(figure: Measured) -> FloatArray:
        return np.sqrt(_mean(figure.error**2, labels, seeds))

    return Settings(
        labels=labels,
        keys=matrix[order[first]],
        seeds=seeds,
        kl=mean(trials.kl),
        kl_error=pooled(trials.kl),
        rewards={name: mean(figure) for name, figure in trials.rewards.items()},
        reward_errors={name: pooled(figure) for name, figure in trials.rewards.items()},
    )


def _mean(values: FloatArray, labels: NDArray[np.intp], counts: NDArray[np.int64]) -> FloatArray:
    means: FloatArray = np.bincount(labels, weights=values, minlength=len(counts)) / counts
    return means
