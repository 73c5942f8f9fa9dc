"""Compositions of several models: from ``models`` of a spec to what its trials take."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from orchestrator.spec.records.constituents import (
    AdapterModel,
    Judge,
    PipelineModel,
    PromptModel,
    constituent,
)
from orchestrator.spec.records.samplers import default_sampler, networks
from orchestrator.spec.records.terms import MinmaxObjective
from orchestrator.spec.text.problems import KeyPath, Problem, dotted
from trainers.config import BaseConfig, CompositionConfig, RewardConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from orchestrator.spec.records.models import SweepSpec, WeightedSettings


def composition_of(spec: SweepSpec, judged: Mapping[str, tuple[str, ...]]) -> CompositionConfig:
    """Return the composition of a spec as a constrained trial takes it.

    Args:
        spec: With ``models``.
        judged: Names of the rewards that judge each model.
    """
    assert spec.models is not None, "a composition"
    objective = spec.objective
    assert isinstance(objective, MinmaxObjective), "models are composed"
    return CompositionConfig(
        models=tuple(
            constituent(name, spec.models[name], judged.get(name, ())) for name in objective.minmax_kl
        ),
        base=base_of(spec),
        direction=objective.direction,
        offsets=dict(objective.offsets),
        sampler=objective.sampler or default_sampler(of_networks=networks(spec.models)),
        distillation=spec.distillation,
    )


def base_of(spec: SweepSpec) -> BaseConfig | None:
    """Return the pipeline that adapters and prompts belong to, and that what is retained is measured from.

    Pipelines have one only where it is written.
    """
    if spec.model is not None and spec.model.pretrained is not None:
        model = spec.model
        return BaseConfig(pretrained=spec.model.pretrained, revision=model.revision, variant=model.variant)
    models = (spec.models or {}).values()
    return BaseConfig() if any(isinstance(model, AdapterModel | PromptModel) for model in models) else None


def family_of(spec: SweepSpec) -> str | None:
    """Return the pipeline that says which CLIP scores images: the base, or the first of several; None for mixtures."""
    if (base := base_of(spec)) is not None:
        return base.pretrained
    pipelines = [model for model in (spec.models or {}).values() if isinstance(model, PipelineModel)]
    return pipelines[0].pretrained if pipelines else None


def simplex_weights(settings: WeightedSettings, names: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield the weight of each model for every point of the grids."""
    written = settings.weights
    if isinstance(written, str):
        yield dict.fromkeys(names, 1.0 / len(names))
        return
    grids = [getattr(weight := written.get(name, 0.0), "grid", (weight,)) for name in names]
    for point in itertools.product(*grids):
        yield dict(zip(names, point, strict=True))


# Rewards of prompts ----------------------------------------------------------------------------------

LEAST = "least"
"""The kind of a reward that is the least of others, image by image; and the end of its name."""

_LONGEST_NAME = 64


def prompt_rewards(
    judges: Mapping[KeyPath, tuple[Judge, RewardConfig]],
    composed: Sequence[str],
    taken: Mapping[str, KeyPath],
) -> tuple[dict[str, tuple[KeyPath, RewardConfig]], list[Problem]]:
    """Return rewards that score images against the prompt of each model, and the least of those alike.

    Args:
        judges: What judges a model that is a prompt, with the reward it names.
        composed: Names of the models of the objective, in its order.
        taken: Names of other rewards, and where they are.

    Returns:
        By name ``REWARD_MODEL`` or ``REWARD_least``: where it comes from, and what it is.
    """
    found: dict[str, tuple[KeyPath, RewardConfig]] = {}
    alike: dict[str, dict[str, str]] = {}  # label -> model -> name
    problems = []
    for path, (judge, reward) in judges.items():
        name = f"{judge.label}_{judge.model}"
        rule = ""
        if len(name) > _LONGEST_NAME:
            rule = f"results would call it {name!r}, which is longer than {_LONGEST_NAME} characters"
        elif name in taken or name in found:
            there = taken[name] if name in taken else found[name][0]
            rule = f"results would call it {name!r}, the name of what is at {dotted(there)}"
        if rule:
            problems.append(Problem(path=path, rule=f"{rule}: give the model another name"))
            continue
        found[name] = (path, reward.model_copy(update={"name": name, "text": judge.prompt}))
        alike.setdefault(judge.label, {})[judge.model] = name
    for label, names in alike.items():
        of = [names[model] for model in composed if model in names]
        least = f"{label}_{LEAST}"
        if len(of) > 1 and len(least) <= _LONGEST_NAME:
            path = found[of[0]][0]
            found[least] = (path, RewardConfig(name=least, kind=LEAST, parameters={"of": of}))
            if least in taken:
                rule = f"results would call the least of {label} {least!r}, the name of what is at"
                problems.append(Problem(path=path, rule=f"{rule} {dotted(taken[least])}: rename that"))
    return found, problems
