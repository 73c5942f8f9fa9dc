"""Rules of the method that trains one adapter for every threshold of a box."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.files.classes import says
from orchestrator.spec.records import registry
from orchestrator.spec.text.problems import KeyPath, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import FrontierSettings, SweepSpec
    from orchestrator.spec.records.rewards import Rewards

MOST_MOVING = 6
"""Thresholds that may move: multipliers are a function over a box of as many dimensions."""


def frontier_problems(spec: SweepSpec, rewards: Rewards) -> Iterator[Problem]:
    """Yield what is wrong with the methods ``frontier`` of a spec."""
    for index, settings in spec.frontiers:
        path: KeyPath = ("methods", index, "frontier")
        if (rule := _unfit(spec)) is not None:
            yield Problem(path=path, rule=rule, at_key=True)
        elif spec.configured.mixture is not None:
            usual = type(settings)()
            for key in ("rank", "form"):
                if (value := getattr(settings, key)) != getattr(usual, key):
                    rule = "is that of a LoRA, and a mixture has no layers to adapt: leave it out"
                    yield Problem(path=(*path, key), rule=rule, value=value)
        else:
            yield from _of_pipeline(spec, rewards, path, settings)


def _of_pipeline(
    spec: SweepSpec, rewards: Rewards, path: KeyPath, settings: FrontierSettings
) -> Iterator[Problem]:
    """Yield what does not go with an adapter that is a function of the multipliers."""
    places = rewards.targets.items()
    least = len({name for place, name in places if place[0] in {"objective", "constraints"}})
    if settings.rank is not None and settings.rank < least:
        rule = f"gives every reward that acts a column of the updates: at least {least}"
        yield Problem(path=(*path, "rank"), rule=rule, value=settings.rank)
    if not registry.is_registered(registry.ADAPTER_FORMS, settings.form):
        yield registry.unknown(registry.ADAPTER_FORMS, settings.form, (*path, "form"))
    if spec.training.compile:
        rule = "fixes an adapter's strengths for good, and those of the method frontier move: leave it out"
        yield Problem(path=("training", "compile"), rule=rule, value=True)
    if spec.evaluation.as_deployed is not None:
        rule = (
            "judges one adapter, and the method frontier has one for every threshold: leave it out, and judge the one "
            "that cdsweep export --at-least writes"
        )
        yield Problem(path=("evaluation", "as_deployed"), rule=rule, at_key=True)


def _unfit(spec: SweepSpec) -> str | None:
    """Return why one adapter cannot answer for the thresholds of a spec, or None."""
    if spec.models is not None:
        return (
            "trains an adapter for thresholds on one model: it does not go with a composition, whose weights are found "
            "without training, anew for each offset; distillation makes one adapter of what was found"
        )
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
