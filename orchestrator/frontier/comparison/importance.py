"""Importance of each threshold: its share of the KL that all of them cost together.

A sum of prices at the thresholds, ``Σ λ_i (b_i − b⁰_i)``, exceeds the cost (it is twice as much on a quadratic
frontier), and what a threshold costs alone depends on which others are there already. The way out is the one of
cost sharing: tighten all thresholds together, from the pretrained means ``b⁰``, where nothing costs anything, to
``b``, and charge each threshold its price at every moment (Aumann & Shapley 1974; Billera & Heath 1982),

    φ_i(b) = (b_i − b⁰_i) ∫₀¹ λ_i(b⁰ + t (b − b⁰)) dt,        Σ_i φ_i(b) = P(b).

It is the only rule that is additive, never negative, free of units and that charges alike what costs alike; what does
not bind costs nothing. (A share of explained variance, functional ANOVA, would be in squared nats, depend on how the
grid was chosen, and call a threshold that is tight everywhere unimportant.)

Prices on the way are those of the trials: where ``P`` is known by tangents ``c_k + λ_k'b``, its best estimate from
below is the largest of them, and its slope that tangent's ``λ_k``. On a line the integral is then a finite sum, which
is taken exactly.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.comparison.priced import PricedSettings

FloatArray = NDArray[np.float64]

_TARGETS = 128
"""Combinations of thresholds that are averaged; of more an even sample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Importance:
    """What the thresholds cost, one by one."""

    rewards: tuple[str, ...]
    share: FloatArray
    """``[m]``, of the KL of all combinations together; sums to 1, or NaN where nothing costs anything."""
    share_at_tightest: FloatArray
    """``[m]``, the same with every threshold at its tightest."""
    targets: FloatArray
    """``[T, m]``, the combinations, reward units."""
    costs: FloatArray
    """``[T, m]``, nats; rows sum to the tangents' estimate of the least KL."""

    @property
    def low(self) -> FloatArray:
        """``[m]``, the least share over the combinations that cost something."""
        shares: FloatArray = self._shares().min(axis=0, initial=np.inf)
        return shares

    @property
    def high(self) -> FloatArray:
        """``[m]``, the greatest one."""
        shares: FloatArray = self._shares().max(axis=0, initial=-np.inf)
        return shares

    def to_json(self) -> dict[str, Any]:
        """As a document: shares by reward."""
        keys = ("share", "low", "high", "at_tightest")
        columns = np.column_stack([self.share, self.low, self.high, self.share_at_tightest]).tolist()
        return {
            name: dict(zip(keys, values, strict=True))
            for name, values in zip(self.rewards, columns, strict=True)
        }

    def _shares(self) -> FloatArray:
        totals = self.costs.sum(axis=1)
        shares: FloatArray = self.costs[totals > 0] / totals[totals > 0, None]
        return shares


def importance(settings: PricedSettings, pretrained: FloatArray) -> Importance:
    """Share the cost of the settings' thresholds.

    Args:
        settings: The combinations and their tangents. Where a reward has no threshold, as the objective has none,
            what the setting reached counts.
        pretrained: ``[m]``, means of the sought rewards, reward units.
    """
    asked = settings.reached.copy()
    for target, thresholds in zip(settings.targets, settings.thresholds.T, strict=True):
        if target in settings.rewards:
            column = settings.rewards.index(target)
            asked[:, column] = np.where(np.isnan(thresholds), asked[:, column], thresholds)
    slopes, offsets = settings.tangents
    targets = asked[np.unique(np.linspace(0, len(asked) - 1, min(len(asked), _TARGETS)).astype(np.intp))]
    costs = share_costs(slopes, offsets, pretrained, targets)
    tightest = asked.max(axis=0, initial=-np.inf)[None]
    return Importance(
        rewards=settings.rewards,
        share=_normalised(costs.sum(axis=0)),
        share_at_tightest=_normalised(share_costs(slopes, offsets, pretrained, tightest)[0]),
        targets=targets,
        costs=costs,
    )


def share_costs(
    slopes: FloatArray, offsets: FloatArray, start: FloatArray, targets: FloatArray
) -> FloatArray:
    """Integrate the prices of the largest tangent from the start to every target: ``[T, m]``, nats.

    Args:
        slopes: ``[k, m]``, >= 0, nats per reward unit.
        offsets: ``[k]``, nats: tangent k is ``slopes[k] · b + offsets[k]``.
        start: ``[m]``, where the least KL is 0: a tangent that says more there is lowered.
        targets: ``[T, m]``; a threshold below the start is met for nothing.
    """
    slopes = np.concatenate([np.zeros((1, slopes.shape[1])), slopes])  # KL is never negative
    begin = np.append(0.0, np.minimum(offsets + slopes[1:] @ start, 0.0))  # at t = 0, [k + 1]
    way = np.maximum(targets - start, 0.0)  # [T, m]
    rise = way @ slopes.T  # per unit of t, [T, k + 1]
    rows = np.arange(len(targets))
    at = np.zeros(len(targets))
    # At the start the steepest of the largest ones leads.
    leader = np.argmax(np.where(begin == 0.0, rise, -np.inf), axis=1)
    costs = np.zeros_like(way)
    while rows.size:
        gain = rise[rows] - rise[rows, leader[rows]][:, None]
        lead = begin[leader[rows]][:, None] - begin
        # A steeper line overtakes where it has made up its lead.
        meets = np.divide(lead, gain, out=np.full_like(gain, np.inf), where=gain > 0)
        until = np.minimum(np.maximum(meets.min(axis=1), at[rows]), 1.0)
        costs[rows] += (until - at[rows])[:, None] * slopes[leader[rows]] * way[rows]
        at[rows] = until
        follower = np.argmax(np.where(meets <= until[:, None], gain, -np.inf), axis=1)
        on = until < 1.0
        rows = rows[on]
        leader[rows] = follower[on]
    return costs


def _normalised(costs: FloatArray) -> FloatArray:
    total = float(costs.sum())
    return costs / total if total > 0 else np.full_like(costs, np.nan)
