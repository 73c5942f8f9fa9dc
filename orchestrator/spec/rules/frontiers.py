"""Rules of the method that trains one adapter for every threshold of a box, or for all weights of a composition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.files.classes import says
from orchestrator.spec.records import registry
from orchestrator.spec.records.samplers import networks
from orchestrator.spec.records.terms import MinmaxObjective
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
        if (rule := _unfit(spec) if spec.models is None else _uncomposed(spec)) is not None:
            yield Problem(path=path, rule=rule, at_key=True)
        elif spec.models is not None:
            yield from _of_composition(spec, path, settings)
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
    yield from _of_lora(spec, path, settings, least, "reward that acts")
    if spec.evaluation.as_deployed is not None:
        rule = (
            "judges one adapter, and the method frontier has one for every threshold: leave it out, and judge the one "
            "that cdsweep export --at-least writes"
        )
        yield Problem(path=("evaluation", "as_deployed"), rule=rule, at_key=True)


def _of_composition(spec: SweepSpec, path: KeyPath, settings: FrontierSettings) -> Iterator[Problem]:
    """Yield what does not go with an adapter that is a function of the models' weights."""
    composed = spec.objective.minmax_kl if isinstance(spec.objective, MinmaxObjective) else ()
    yield from _of_lora(spec, path, settings, len(composed), "model")
    if settings.rounds > 1:
        rule = (
            "trains further where thresholds cost too much, and weights of a composition have none: leave it out, and "
            "write more steps"
        )
        yield Problem(path=(*path, "rounds"), rule=rule, value=settings.rounds)


def _of_lora(
    spec: SweepSpec, path: KeyPath, settings: FrontierSettings, least: int, each: str
) -> Iterator[Problem]:
    """Yield what does not go with gates on the columns of an adapter; ``each`` needs one of ``least``."""
    if settings.rank is not None and settings.rank < least:
        rule = f"gives every {each} a column of the updates: at least {least}"
        yield Problem(path=(*path, "rank"), rule=rule, value=settings.rank)
    if not registry.is_registered(registry.ADAPTER_FORMS, settings.form):
        yield registry.unknown(registry.ADAPTER_FORMS, settings.form, (*path, "form"))
    if spec.training.compile:
        rule = "fixes an adapter's strengths for good, and those of the method frontier move: leave it out"
        yield Problem(path=("training", "compile"), rule=rule, value=True)


def _uncomposed(spec: SweepSpec) -> str | None:
    """Return why one adapter cannot answer for the weights of a composition, or None."""
    if not networks(spec.models or {}):
        return (
            "trains an adapter that is a function of the models' weights, and mixtures have no layers to adapt: write "
            "the method constrained, or weighted with weights"
        )
    if spec.distillation is None:
        return (
            "makes the one adapter that a composition is distilled into a function of the models' weights: write "
            "distillation: {steps: 200} too, or the method constrained"
        )
    if spec.constraints:
        listed = ", ".join(constraint.label for constraint in spec.constraints)
        return (
            "answers for weights of the models alone, and a composition under thresholds is another one at the same "
            f"weights: leave out constraints ({listed}), or write the method constrained"
        )
    return None


def _unfit(spec: SweepSpec) -> str | None:
    """Return why one adapter cannot answer for the thresholds of a spec, or None."""
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
