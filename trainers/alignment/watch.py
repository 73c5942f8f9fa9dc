"""What moved beside what is trained on: rewards may climb while the picture dies."""

import numpy as np

from trainers.config import BaselineStatistics
from trainers.types import WATCH, Evaluation

_FAR = 1.0
"""Standard deviations of the pretrained model's samples from which a mean has moved."""


def watched(evaluation: Evaluation, baseline: BaselineStatistics) -> list[str]:
    """Say of every reward that is only measured whether its mean has moved by more than 1 σ, and by how much."""
    notes = []
    for name, before in baseline.measured.items():
        values = evaluation.rewards.get(name)
        if values is None or not np.isfinite(values).any():
            continue
        mean = float(np.nanmean(values))
        if abs(moved := (mean - before.mean) / before.std) > _FAR:
            size = mean - before.mean
            share = (
                f" {size / abs(before.mean):+.0%}".replace("-", "−").replace("%", " %") if before.mean else ""
            )
            notes.append(
                f"{WATCH}: {name.replace('_', ' ')}{share} ({before.mean:.3g} to {mean:.3g}, {abs(moved):.1f} σ of the "
                "pretrained model's images), which nothing constrains"
            )
    return notes
