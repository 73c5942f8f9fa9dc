"""Constrained settings as points of the frontier, each with its tangent and the noise of both.

The multiplier of a threshold is the slope dKL per reward, under a reward objective as well: there the objective's own
multiplier is the slope of the KL budget, and that of the budget says the same once more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.frontier.comparison.comparison import Settings, settings_of
from orchestrator.frontier.trials import Trials, real
from trainers.config import TrialConfig

FloatArray = NDArray[np.float64]

_TANGENTS = 512
"""Settings whose tangents are used; of more an even sample."""
_UNBOUNDED = 1e100
"""Standard error of what too few samples tell nothing of; its square is finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PricedSettings:
    """``n`` constrained settings as points of the frontier of ``m`` sought rewards, with their tangents."""

    rewards: tuple[str, ...]
    """Names of the sought rewards."""
    constraints: tuple[str, ...]
    """Names of the constraints, KL budgets among them."""
    targets: tuple[str, ...]
    """Reward, or model, that each of them is on."""
    thresholds: FloatArray
    """``[n, constraints]``, reward units or nats; NaN where a constraint is absent."""
    signs: FloatArray
    """``[constraints]``: 1 where a larger threshold is tighter, -1 for a KL budget."""
    seeds: NDArray[np.int64]
    """``[n]``"""
    reached: FloatArray
    """``[n, m]``, reward units."""
    reached_errors: FloatArray
    kl: FloatArray
    """``[n]``, nats."""
    kl_errors: FloatArray
    prices: FloatArray
    """``[n, m]``, nats per reward unit."""
    price_errors: FloatArray
    others: FloatArray
    """``[k, 1 + m]``, KL and rewards of what else is mixed: the pretrained model, and trials of other methods."""

    @cached_property
    def tangents(self) -> tuple[FloatArray, FloatArray]:
        """Slopes ``[k, m]`` and offsets ``[k]`` of tangents of the frontier, nats.

        A tangent is lowered until nothing that was measured lies below it, which changes nothing where prices are
        exact: the multipliers of a trial that missed its thresholds are any number of times too large.
        """
        rows = np.unique(np.linspace(0, len(self.kl) - 1, min(len(self.kl), _TANGENTS)).astype(np.intp))
        slopes = self.prices[rows]
        kl = np.concatenate([self.kl, self.others[:, 0]])
        reached = np.concatenate([self.reached, self.others[:, 1:]])
        blocks = np.array_split(slopes, 1 + slopes.shape[0] * len(kl) // 2_000_000)
        offsets = [(kl[:, None] - reached @ block.T).min(axis=0) for block in blocks]
        return slopes, np.concatenate(offsets)


def priced_settings(
    trials: Trials, pretrained: FloatArray, history: pa.Table | None = None
) -> PricedSettings:
    """Collect the constrained settings whose multipliers and figures are all there.

    Standard errors are those of the evaluation or, where settings have several seeds, those of the spread over
    seeds if it is larger. A multiplier has no evaluation: without seeds its error comes from the history of the
    averaged steps, the difference of their halves, and without that it counts as none.

    Args:
        trials: Of all methods.
        pretrained: ``[m]``, means of the sought rewards, reward units.
        history: Rows of ``history/*.parquet``.
    """
    config, sought = trials.config, trials.sought
    whole = np.isfinite(reward_prices(trials.multipliers, config, sought)).all(axis=1)
    finite = np.isfinite(trials.points).all(axis=1)
    whole &= finite & (trials.methods == "constrained")
    mine, beside = trials.take(trials.succeeded & whole), trials.take(trials.succeeded & finite & ~whole)
    multipliers = reward_prices(mine.multipliers, config, sought)
    measured, others = (
        np.column_stack([of.kl.mean, *(of.rewards[name].mean for name in sought)]) for of in (mine, beside)
    )
    settings = settings_of(mine, list(mine.thresholds.values()))
    prices = _means(settings, multipliers)
    spreads = _spread(settings, np.column_stack([measured, multipliers]))
    count = len(sought)
    evaluated = np.column_stack([settings.kl_error, *(settings.reward_errors[name] for name in sought)])
    errors = np.fmax(np.nan_to_num(evaluated, posinf=_UNBOUNDED), spreads[:, : 1 + count])
    price_errors = spreads[:, 1 + count :]
    if history is not None and not (settings.seeds > 1).any():
        drifts = _drifts(history, mine)
        known = np.isfinite(drifts).all(axis=1)
        variance = (drifts[known] ** 2).sum(axis=0) / max(int(known.sum()), 1)
        price_errors = _by_size(prices, variance) / np.sqrt(settings.seeds)[:, None]
    return PricedSettings(
        rewards=sought,
        constraints=tuple(trials.thresholds),
        targets=tuple(constraint.target for constraint in config.constraints),
        thresholds=settings.keys,
        signs=np.array([-1.0 if constraint.kind == "kl" else 1.0 for constraint in config.constraints]),
        seeds=settings.seeds,
        reached=_means(settings, measured[:, 1:]),
        reached_errors=errors[:, 1:],
        kl=settings.kl,
        kl_errors=errors[:, 0],
        prices=prices,
        price_errors=price_errors,
        others=np.vstack([[0.0, *pretrained], others]),
    )


def reward_prices(
    multipliers: Mapping[str, FloatArray], config: TrialConfig, rewards: Sequence[str]
) -> FloatArray:
    """Nats per unit of every reward ``[t, m]``, of multipliers ``[t]`` by constraint; 0 for one nobody asks for."""
    columns = []
    none = np.zeros_like(next(iter(multipliers.values())))
    for name in rewards:
        of = [c.name for c in config.constraints if c.kind == "reward" and c.target == name]
        if config.objective.kind == "reward" and config.objective.target == name:
            of.append(name)
        columns.append(np.sum([multipliers[constraint] for constraint in of] or [none], axis=0))
    return np.column_stack(columns)


def _drifts(history: pa.Table, trials: Trials) -> FloatArray:
    """Standard error of every trial's averaged multipliers, ``[t, m]``: half the difference of two batch means."""
    place = pc.index_in(history["trial_id"], value_set=pa.array(trials.ids, pa.string()))
    rows = history.append_column("place", place).filter(pc.is_valid(place))
    labels = np.asarray(rows["place"].to_numpy(), dtype=np.intp)
    logged = {name: real(rows, f"multiplier_{name}") for name in trials.multipliers}
    config, steps = trials.config, real(rows, "step")
    values = reward_prices(logged, config, trials.sought)
    last = np.zeros(len(trials))
    np.maximum.at(last, labels, steps)
    width = math.ceil(config.training.average * config.training.steps)  # also of a trial that ended early
    halves = np.where(steps > last[labels] - 0.5 * width, 1, 0)
    averaged = steps > last[labels] - width
    group = (2 * labels + halves)[averaged]
    counts = np.bincount(group, minlength=2 * len(trials)).astype(np.float64)
    counts[counts == 0] = np.nan
    means = np.column_stack(
        [np.bincount(group, weights=column, minlength=len(counts)) / counts for column in values[averaged].T]
    )
    return 0.5 * np.abs(means[1::2] - means[0::2])


def _spread(settings: Settings, values: FloatArray) -> FloatArray:
    """Standard error of each setting's mean by the spread over seeds, pooled over settings: ``[n, columns]``."""
    freedom = int((settings.seeds - 1).sum())
    means = _means(settings, values)
    if freedom == 0:
        return np.zeros_like(means)
    variance = ((values - means[settings.labels]) ** 2).sum(axis=0) / freedom
    return _by_size(means, variance) / np.sqrt(settings.seeds)[:, None]


def _by_size(means: FloatArray, variance: FloatArray) -> FloatArray:
    """Spread a mean variance over settings, so that the error grows with the value and does not vanish with it."""
    if not len(means):
        return means
    size = means**2 + (means**2).mean(axis=0)
    scale = size.mean(axis=0)
    scaled: FloatArray = np.sqrt(variance * size / np.where(scale > 0, scale, 1.0))
    return scaled


def _means(settings: Settings, values: FloatArray) -> FloatArray:
    return (
        np.column_stack([settings.mean(column) for column in values.T])
        if values.shape[1]
        else np.zeros((len(settings.seeds), 0))
    )
