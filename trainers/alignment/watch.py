"""What moved beside what is trained on: rewards may climb while the picture dies."""

from collections.abc import Iterator

import numpy as np

from trainers.config import BaselineStatistics
from trainers.evaluate import diversity
from trainers.types import WATCH, Evaluation

_FAR = 1.0
"""Standard deviations of the pretrained model's samples from which a mean has moved."""


def watched(evaluation: Evaluation, baseline: BaselineStatistics) -> list[str]:
    """Say of all that is only measured whether its mean has moved by more than 1 σ, and by how much.

    That is rewards that are judges or standing side measures, the norm of the velocity along paths, and the diversity,
    of which σ is its spread between prompts.
    """
    notes = []
    for name, of, before, spread, mean in _compared(evaluation, baseline):
        size = mean - before
        if abs(moved := size / spread) > _FAR:
            share = f" {size / abs(before):+.0%}".replace("-", "−").replace("%", " %") if before else ""
            notes.append(
                f"{WATCH}: {name}{share} ({before:.3g} to {mean:.3g}, {abs(moved):.1f} σ of the pretrained model's "
                f"{of}), which nothing constrains"
            )
    return notes


def _compared(
    evaluation: Evaluation, baseline: BaselineStatistics
) -> Iterator[tuple[str, str, float, float, float]]:
    """Yield name, whose σ it is, mean and σ before, and mean now."""
    for name, known in baseline.measured.items():
        values = evaluation.rewards.get(name)
        if values is not None and np.isfinite(values).any():
            yield name.replace("_", " "), "images", known.mean, known.std, float(np.nanmean(values))
    if (speed := baseline.velocity) is not None and evaluation.velocity is not None:
        yield "norm of the velocity", "paths", speed.mean, speed.std, float(evaluation.velocity.mean())
    before, spread, now = baseline.diversity, baseline.diversity_std, diversity(evaluation)
    if before is not None and spread and now is not None:
        yield "diversity", "prompts", before, spread, now
