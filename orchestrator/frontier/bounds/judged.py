"""The box of thresholds that a sweep asked for, and the least KL in it: what an excess is measured from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.bounds.excess import UpperBound, thresholds_of_box
from orchestrator.frontier.comparison.priced import PricedSettings
from orchestrator.frontier.feasibility import tolerance
from orchestrator.frontier.problems.least import BoundKind, LeastKL
from trainers.config import BaselineStatistics, TrialConfig

FloatArray = NDArray[np.float64]

THRESHOLDS = 200
"""Random ones of the box, at which the excess is judged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """The box of thresholds, and the least KL there."""

    low: FloatArray
    """``[m]``, reward units."""
    high: FloatArray
    """``[m]``: the tightest thresholds less the tolerance by which a feasible trial may miss them."""
    thresholds: FloatArray
    """``[T, m]``"""
    least: FloatArray
    """``[T]``, nats."""
    prices: FloatArray
    """``[T, m]``, multipliers there, nats per reward unit."""
    kind: BoundKind
    """95%: a lower bound by path weights, so that an excess is at most what it says. Estimated: from the tangents of
    trained trials, or what the caller had."""

    def to_json(self, sought: Sequence[str]) -> dict[str, Any]:
        """As a document."""
        ends = zip(sought, self.low.tolist(), self.high.tolist(), strict=True)
        return {"least_kl": self.kind, "thresholds": {name: [low, high] for name, low, high in ends}}


def judge(
    settings: PricedSettings,
    config: TrialConfig,
    baseline: BaselineStatistics,
    exact: LeastKL | None,
    least: UpperBound | None,
    generator: np.random.Generator,
) -> Judged | None:
    """Draw thresholds and bound their KL from below; None without one of every reward, or a KL objective."""
    if config.objective.kind != "kl" or sorted(settings.targets) != sorted(settings.rewards):
        return None
    order = [settings.targets.index(name) for name in settings.rewards]
    asked = settings.thresholds[:, order]
    if not np.isfinite(asked).any(axis=0).all():
        return None
    misses = np.array([tolerance(config.constraints[row], config.evaluation, baseline) for row in order])
    high = np.nanmax(asked, axis=0) - misses
    low = np.minimum(np.nanmin(asked, axis=0), high)  # one threshold alone grants the tolerance too
    thresholds = thresholds_of_box(low, high, THRESHOLDS, generator)
    slopes, offsets = settings.tangents
    tangents = thresholds @ slopes.T + offsets
    prices = slopes[tangents.argmax(axis=1)]
    proven = exact is not None and exact.kind == "proven"
    planes = None if exact is None or proven else exact.planes(settings.rewards, np.unique(asked, axis=0))
    if exact is not None and proven:
        optima = [
            exact.least_kl(dict(zip(settings.rewards, row, strict=True))) for row in thresholds.tolist()
        ]
        values = np.array([optimum.kl for optimum in optima])
    elif least is not None:
        values = least(thresholds)
        planes = None
    elif planes is not None:
        values = np.maximum((thresholds @ planes[0].T + planes[1]).max(axis=1), 0.0)
    else:
        values = np.maximum(tangents.max(axis=1), 0.0)
    if not np.isfinite(values).any():
        return None
    return Judged(
        low=low,
        high=high,
        thresholds=thresholds,
        least=values,
        prices=prices,
        kind="proven" if proven else "estimated" if planes is None else "95%",
    )
