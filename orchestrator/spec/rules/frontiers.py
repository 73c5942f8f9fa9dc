"""Rules of the method that trains one adapter for every threshold of a box."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.files.classes import says
from orchestrator.spec.records import registry
from orchestrator.spec.text.problems import KeyPath, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import SweepSpec

MOST_MOVING = 6
"""Thresholds that may move: multipliers are a function over a box of as many dimensions."""


def frontier_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Yield what is wrong with the methods ``frontier`` of a spec."""
    for index, settings in spec.frontiers:
        path: KeyPath = ("methods", index, "frontier")
        if (rule := _unfit(spec)) is not None:
            yield Problem(path=path, rule=rule, at_key=True)
        elif settings.rank is not None:
            rule = "is that of a LoRA, and a mixture has no layers to adapt: leave it out"
            yield Problem(path=(*path, "rank"), rule=rule, value=settings.rank)


def _unfit(spec: SweepSpec) -> str | None:
    """Return why one adapter cannot answer for the thresholds of a spec, or None."""
    if spec.models is not None:
        return "answers for thresholds on one model: it does not go with a composition"
    if spec.configured.mixture is None:
        return "trains the control of a mixture, model: {mixture: …}; for a pipeline write constrained"
    estimator = spec.training.primal
    if says(registry.PRIMAL_ESTIMATORS, estimator, "for_each_sample") is False:
        return f"asks each sample for thresholds of its own, and training.primal {estimator} cannot: log_variance can"
    moving = [constraint.label for constraint in spec.constraints if len(constraint.values) > 1]
    if not moving:
        return (
            "answers for all thresholds between two ends, and none moves: write at_least: {range: [low, high]} or a "
            "grid in at least one constraint, or the method constrained"
        )
    if len(moving) > MOST_MOVING:
        return f"answers for a box of at most {MOST_MOVING} moving thresholds, got {len(moving)}: {', '.join(moving)}"
    return None
