"""What ``cdsweep pick`` chooses from, to the last digit: a page that picks by the same rule picks the same trial."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from orchestrator.frontier.bounds import ROUNDING
from orchestrator.frontier.dominance import non_dominated, sought_rewards
from orchestrator.frontier.mixing import NEGLIGIBLE
from orchestrator.report.picked import candidates
from trainers.config import BaselineStatistics, TrialConfig

_PRUNED = 2000
"""Candidates above which dominated ones are left out: of them a pick takes none."""


def pickable(
    rows: Iterable[Mapping[str, Any]],
    config: TrialConfig,
    baseline: BaselineStatistics,
    pretrained: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    """Return candidates and the constants of the rule.

    Candidates are columns: ``ids`` (the pretrained model first), ``kl``, ``reaches``, ``rewards`` and ``multipliers``
    ``[k, m]``, a row of multipliers null where there are none. ``units`` scale rewards, ``deviations`` are σ of the
    pretrained model, and ``sought`` are the rewards that a KL budget improves together.
    """
    names = [reward.name for reward in config.rewards]
    found = candidates(rows, config, pretrained)
    points = [point for _, point in found]
    reaches = np.array([point.reaches(0.0) for point in points])
    spread = np.ptp(reaches, axis=0)
    kl = np.array([point.kl for point in points])
    kept = list(range(len(found)))
    if len(found) > _PRUNED:
        best = non_dominated(np.column_stack([kl, -reaches]))
        best[0] = True
        kept = np.flatnonzero(best).tolist()
    return {
        "rewards": names,
        "sought": list(sought_rewards(config)),
        "units": np.where(spread > 0, spread, 1.0).tolist(),
        "deviations": [baseline.rewards[name].std for name in names],
        "rounding": ROUNDING,
        "negligible": NEGLIGIBLE,
        "ids": [found[row][0] for row in kept],
        "kl": [float(kl[row]) for row in kept],
        "reaches": [reaches[row].tolist() for row in kept],
        "rewards_measured": [points[row].rewards.tolist() for row in kept],
        "multipliers": [_listed(points[row].multipliers) for row in kept],
    }


def _listed(values: Any) -> list[float] | None:
    return None if values is None else values.tolist()
