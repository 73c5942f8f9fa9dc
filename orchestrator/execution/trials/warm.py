"""Where a trial begins: at the nearest finished one, if it is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.config import TrialJob


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """A finished trial, and its multipliers for another one."""

    trial_id: str
    multipliers: tuple[float, ...]
    """Per scaled violation, in the order of the constraints."""
    adapted: bool
    """Whether it left an adapter; that of a mixture is not kept."""


def nearest(job: TrialJob, rows: Sequence[Mapping[str, Any]]) -> WarmStart | None:
    """Return the constrained trial whose thresholds are nearest, in σ; of the same seed where there is one.

    Only trials that succeeded, of problems that minimise the KL under thresholds of rewards: their multipliers are
    prices in nats, whatever the thresholds.
    """
    config = job.config
    if config.objective.kind != "kl" or any(c.kind != "reward" for c in config.constraints):
        return None
    scales = {c.name: job.baseline.rewards[c.target].std for c in config.constraints}
    found: list[tuple[tuple[bool, float, str], Mapping[str, Any]]] = []
    for row in rows:
        if row["method"] != "constrained" or row["status"] != "succeeded" or row["trial_id"] == job.trial_id:
            continue
        figures = [(row.get(f"threshold_{name}"), row.get(f"multiplier_{name}")) for name in scales]
        if any(bound is None or price is None for bound, price in figures):
            continue
        apart = [(row[f"threshold_{name}"] - job.thresholds[name]) / scale for name, scale in scales.items()]
        found.append(((row["seed"] != config.seed, float(np.linalg.norm(apart)), row["trial_id"]), row))
    if not found:
        return None
    row = min(found, key=lambda item: item[0])[1]
    return WarmStart(
        trial_id=row["trial_id"],
        adapted=row.get("adapter") is not None,
        multipliers=tuple(
            max(0.0, float(row[f"multiplier_{name}"])) * scale for name, scale in scales.items()
        ),
    )
