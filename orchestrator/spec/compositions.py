"""Compositions of several models in a spec: ``models``, and the rules about them.

Results have columns ``kl_NAME``, ``multiplier_NAME`` and ``weight_NAME`` for every model, so a model is called
neither like a reward or constraint nor like the end of another column.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Tag

from orchestrator.spec.problems import KeyPath, Problem, dotted, suggestion
from orchestrator.spec.terms import KLConstraint, MinmaxObjective, RewardConstraint, told_apart
from trainers.config import CompositionConfig, ConstituentConfig, Frozen, MixtureConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from orchestrator.spec.models import SweepSpec, WeightedSettings

SIMPLEX_TOLERANCE = 1e-6
"""Of the sum of weights."""

_LATER = ("adapter", "prompt", "pretrained")
_TAKEN = ("kl", "low", "high", "estimator", "least", "ratio")
"""``kl_low`` and such are columns of their own."""


class MixtureModel(Frozen):
    """One model of a composition."""

    mixture: MixtureConfig
    """An exact Gaussian mixture."""


def _form(value: Any) -> str | None:
    """Return the tag of a model that can be composed."""
    keys = value if isinstance(value, dict) else {}
    return "MixtureModel" if "mixture" in keys and not any(key in keys for key in _LATER) else None


ComposedModel = Annotated[
    # The second is never chosen: a union has at least two forms, and there is one until others compose.
    Annotated[MixtureModel, Tag("MixtureModel")] | Annotated[MixtureModel, Tag("<later>")],
    told_apart(
        _form,
        f"{{mixture: …}}: only mixtures compose in this version, not the forms {', '.join(_LATER)}",
        "mixture",
    ),
]


def composition_of(models: Mapping[str, MixtureModel], objective: MinmaxObjective) -> CompositionConfig:
    """Return the composition of the listed models, as a trial takes it."""
    return CompositionConfig(
        models=tuple(
            ConstituentConfig(name=name, mixture=models[name].mixture) for name in objective.minmax_kl
        ),
        direction=objective.direction,
        offsets=dict(objective.offsets),
        sampler=objective.sampler,
    )


def simplex_weights(settings: WeightedSettings, names: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield the weight of each model for every point of the grids."""
    written = settings.weights
    if isinstance(written, str):
        yield dict.fromkeys(names, 1.0 / len(names))
        return
    grids = [getattr(weight := written.get(name, 0.0), "grid", (weight,)) for name in names]
    for point in itertools.product(*grids):
        yield dict(zip(names, point, strict=True))


# Rules -----------------------------------------------------------------------------------------------


def composition_problems(spec: SweepSpec, *, enumerable: bool) -> list[Problem]:
    """Return what is wrong with a spec that composes models.

    Args:
        spec: With ``models``.
        enumerable: Its grids are small enough to look at every point.
    """
    assert spec.models is not None, "a composition"
    if spec.model is not None:
        return [
            Problem(path=("model",), rule="goes without 'models': a spec has one of the two", at_key=True)
        ]
    problems = [*_dimension_problems(spec.models), *_section_problems(spec)]
    objective = spec.objective
    if not isinstance(objective, MinmaxObjective):
        rule = f"models are composed: write {{minmax_kl: [{', '.join(spec.models)}]}}"
        return [*problems, Problem(path=("objective",), rule=rule)]
    names = list(spec.models)
    for index, name in enumerate(objective.minmax_kl):
        if name not in names:
            path: KeyPath = ("objective", "minmax_kl", index)
            hint = suggestion(name, names, "models of this spec")
            problems.append(Problem(path=path, rule=f"unknown model {name!r}", value=name, hint=hint))
    for name in objective.offsets:
        if name not in objective.minmax_kl:
            path = ("objective", "offsets", name)
            hint = suggestion(name, objective.minmax_kl, "models of the objective")
            problems.append(Problem(path=path, rule=f"unknown model {name!r}", hint=hint, at_key=True))
    problems += _constraint_problems(spec, objective)
    problems += _weight_problems(spec, objective, enumerable=enumerable)
    return problems


def clash_problems(
    models: Iterable[str],
    rewards: Mapping[KeyPath, str],
    constraints: Sequence[RewardConstraint | KLConstraint],
) -> list[Problem]:
    """Return the problems of models whose columns in the results would be those of something else.

    Args:
        models: Their names.
        rewards: Names of rewards by the place that they are used at.
        constraints: Those of the spec.
    """
    others = {name.lower(): dotted(path) for path, name in reversed(list(rewards.items()))}
    others |= {
        constraint.label.lower(): dotted(("constraints", index))
        for index, constraint in enumerate(constraints)
        if constraint.label.lower() not in others
    }
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for name in models:
        key = name.lower()
        rule = None
        if key in _TAKEN:
            rule = f"a model must not be called {name!r}, results have other columns of that name"
        elif key in others:
            rule = f"a model must not be called {name!r}, the name of what is at {others[key]}"
        elif key in seen:
            rule = f"the names {seen[key]!r} and {name!r} differ in case only, and columns of the results would clash"
        elif (end := key.rpartition("_"))[2] in {"low", "high"} and end[0]:
            rule = f"a model must not be called {name!r}: kl_{name} would look like the end of an interval"
        if rule is not None:
            problems.append(Problem(path=("models", name), rule=rule, at_key=True))
        seen.setdefault(key, name)
    return problems


def _dimension_problems(models: Mapping[str, MixtureModel]) -> list[Problem]:
    dimensions = {name: model.mixture.dimension for name, model in models.items()}
    if len(set(dimensions.values())) == 1:
        return []
    listed = ", ".join(f"{name} has {size}" for name, size in dimensions.items())
    return [Problem(path=("models",), rule=f"must all have one dimension, but {listed}")]


def _section_problems(spec: SweepSpec) -> Iterator[Problem]:
    if spec.prompts is not None:
        yield Problem(path=("prompts",), rule="a composition of mixtures has no prompts")
    if spec.sampling.rest > 0:
        rule = "must be 0 for a composition: it has no adapter to leave off"
        yield Problem(path=("sampling", "rest"), rule=rule, value=spec.sampling.rest)


def _constraint_problems(spec: SweepSpec, objective: MinmaxObjective) -> Iterator[Problem]:
    for index, constraint in enumerate(spec.constraints):
        path: KeyPath = ("constraints", index)
        if isinstance(constraint, KLConstraint):
            rule = "a composition has no pretrained model: its KLs are the objective"
            yield Problem(path=(*path, "kl"), rule=rule, value=constraint.kl)
            continue
        if objective.direction == "forward":
            rule = (
                "rewards go with direction: reverse; under thresholds the best OR is no mixture of the models"
            )
            yield Problem(path=(*path, "reward"), rule=rule)
        if constraint.unit != "absolute":
            rule = "must be absolute for a composition: there is no pretrained model to refer to"
            yield Problem(path=(*path, "unit"), rule=rule, value=constraint.unit)
        else:
            percent = next((value for value in constraint.written if isinstance(value, str)), None)
            if percent is not None:
                rule = f"the percentage {percent!r} refers to a pretrained model, and a composition has none"
                yield Problem(path=(*path, "at_least"), rule=rule)


def _weight_problems(spec: SweepSpec, objective: MinmaxObjective, *, enumerable: bool) -> Iterator[Problem]:
    for index, method in enumerate(spec.methods):
        if isinstance(method, str):
            continue
        settings = method.weighted
        path: KeyPath = ("methods", index, "weighted")
        if settings.scale != 1.0:
            rule = "must be 1 for a composition: its weights sum to 1"
            yield Problem(path=(*path, "scale"), rule=rule)
        if isinstance(settings.weights, str):
            continue
        path = (*path, "weights")
        unknown = [name for name in settings.weights if name not in objective.minmax_kl]
        for name in unknown:
            hint = suggestion(name, objective.minmax_kl, "models of the objective")
            yield Problem(path=(*path, name), rule=f"unknown model {name!r}", hint=hint, at_key=True)
        if unknown or not enumerable:
            continue
        for weights in simplex_weights(settings, objective.minmax_kl):
            total = sum(weights.values())
            if abs(total - 1.0) > SIMPLEX_TOLERANCE:
                listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
                rule = f"must sum to 1 at every point of the grids, but {listed} sum to {total:.6g}"
                yield Problem(path=path, rule=rule)
                break
