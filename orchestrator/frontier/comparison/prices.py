"""Shadow prices: does the multiplier of a trial agree with what its neighbours paid?

Symbols: ``P(r)`` is the least KL at expected rewards ``r``, convex, and a constrained setting ends at rewards ``r_k``,
KL ``K_k`` and multipliers ``λ_k = ∇P(r_k)``, all three means over its seeds. For any two settings convexity asks that

    λ_a · (r_b − r_a)  <=  K_b − K_a  <=  λ_b · (r_b − r_a):

the finite difference of the frontier lies between what the two multipliers predict, on a coarse grid as on a fine
one. Neighbours differ in one threshold, by one level; a setting that has none, as in a search that chooses its
thresholds freely, is held against the nearest one. What lies outside by more than its noise is flagged: there a
multiplier had not converged, or a trial pays more than it has to.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.special import ndtri

from orchestrator.frontier.comparison.priced import PricedSettings

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
"""That no pair is flagged where all prices are right (Bonferroni)."""
_ROUNDING = 1e-9
"""Relative to the terms of a comparison."""
_TOLD = 20
"""Flagged pairs that the document has, the worst ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PriceCheck:
    """``p`` pairs of neighbouring settings, the looser one first."""

    first: NDArray[np.intp]
    """``[p]``, rows of the settings."""
    second: NDArray[np.intp]
    constraint: NDArray[np.intp]
    """``[p]``, the one threshold that differs; -1 where several do."""
    step: FloatArray
    """``[p]``, by how much it is tighter, in its units; NaN where several are."""
    paid: FloatArray
    """``[p]``, finite difference of the KL, nats."""
    least: FloatArray
    """``[p]``, what the first setting's multipliers predict at least, nats."""
    most: FloatArray
    """``[p]``, what the second one's predict at most."""
    deviations: FloatArray
    """``[p]``, how far ``paid`` is outside of ``least`` to ``most``, in standard errors; negative inside."""
    limit: float
    """Deviations from which on a pair is flagged."""

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """``[p]``, whether prices and frontier disagree beyond noise."""
        return self.deviations > self.limit

    def to_json(self, settings: PricedSettings) -> dict[str, Any]:
        """As a document: the numbers of pairs, and the worst of those that are flagged."""
        worst = np.argsort(-self.deviations)[: min(_TOLD, int(self.flagged.sum()))]

        def thresholds(row: int) -> dict[str, float]:
            return dict(zip(settings.constraints, settings.thresholds[row].tolist(), strict=True))

        return {
            "pairs": len(self.first),
            "flagged": int(self.flagged.sum()),
            "limit": self.limit,
            "worst": [
                {
                    "looser": thresholds(int(self.first[row])),
                    "tighter": thresholds(int(self.second[row])),
                    "paid": float(self.paid[row]),
                    "least": float(self.least[row]),
                    "most": float(self.most[row]),
                    "deviations": float(self.deviations[row]),
                }
                for row in worst.tolist()
            ],
        }


def check_prices(settings: PricedSettings) -> PriceCheck:
    """Compare the multipliers of all neighbours with the finite differences of the frontier."""
    tightness = settings.thresholds * settings.signs
    first, second, constraint = neighbours(tightness)
    steps = settings.reached[second] - settings.reached[first]  # [p, m]
    paid = settings.kl[second] - settings.kl[first]
    least = (settings.prices[first] * steps).sum(axis=1)
    most = (settings.prices[second] * steps).sum(axis=1)
    noise = settings.reached_errors[first] ** 2 + settings.reached_errors[second] ** 2
    common = settings.kl_errors[first] ** 2 + settings.kl_errors[second] ** 2

    def error(of: NDArray[np.intp]) -> FloatArray:
        """Of ``paid`` minus the prediction by one side's multipliers."""
        own = settings.prices[of] ** 2 * noise + (steps * settings.price_errors[of]) ** 2
        rounding = _ROUNDING * (np.abs(paid) + np.abs(settings.prices[of] * steps).sum(axis=1))
        total: FloatArray = np.sqrt(common + own.sum(axis=1)) + rounding + np.finfo(np.float64).tiny
        return total

    named = constraint >= 0
    step = np.full(len(first), np.nan)
    step[named] = np.abs(settings.thresholds[second, constraint] - settings.thresholds[first, constraint])[
        named
    ]
    return PriceCheck(
        first=first,
        second=second,
        constraint=constraint,
        step=step,
        paid=paid,
        least=least,
        most=most,
        deviations=np.maximum((least - paid) / error(first), (paid - most) / error(second)),
        limit=-float(ndtri((1.0 - CONFIDENCE) / (2 * max(len(first), 1)))),
    )


def neighbours(
    tightness: FloatArray,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of settings next to each other: the looser, the tighter, and the axis they differ in, ``[p]`` each.

    Args:
        tightness: ``[n, m]``, larger is tighter; NaN where there is no threshold. Rows are distinct.
    """
    filled = np.nan_to_num(tightness, nan=-np.inf)
    count, size = filled.shape
    pairs = [np.empty((0, 3), dtype=np.intp)]
    for axis in range(size):
        others = np.delete(filled, axis, axis=1)
        order = np.lexsort((filled[:, axis], *others.T))
        same = (others[order[1:]] == others[order[:-1]]).all(axis=1)
        same &= np.isfinite(filled[order[:-1], axis])
        pairs.append(np.column_stack([order[:-1], order[1:], np.full(len(same), axis)])[same])
    alone = np.ones(count, dtype=np.bool_)
    alone[np.concatenate(pairs)[:, :2].ravel()] = False
    whole = np.isfinite(filled).all(axis=1)
    if (alone & whole).any() and whole.sum() > 1:
        pairs.append(_nearest(filled, np.flatnonzero(alone & whole), np.flatnonzero(whole)))
    found = np.concatenate(pairs)
    return found[:, 0], found[:, 1], found[:, 2]


def _nearest(points: FloatArray, rows: NDArray[np.intp], among: NDArray[np.intp]) -> NDArray[np.intp]:
    """Every row with its nearest other one, ``[p, 3]``; distances in widths of the box."""
    widths = np.ptp(points[among], axis=0)
    scaled = points / np.where(widths > 0, widths, 1.0)
    _, places = KDTree(scaled[among]).query(scaled[rows], k=2)
    ends = among[places]  # [p, 2]; the row itself is one of them
    other = np.where(ends[:, 0] == rows, ends[:, 1], ends[:, 0])
    pairs = np.unique(np.sort(np.column_stack([rows, other]), axis=1), axis=0)
    swap = scaled[pairs[:, 0]].sum(axis=1) > scaled[pairs[:, 1]].sum(axis=1)
    pairs[swap] = pairs[swap, ::-1]
    return np.column_stack([pairs, np.full(len(pairs), -1)])
