"""Rules about compositions of several models.

Results have columns ``kl_NAME``, ``multiplier_NAME`` and ``weight_NAME`` for every model, so a model is called
neither like a reward or constraint nor like the end of another column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.files.pipelines import flows, name_problems
from orchestrator.spec.records.compositions import LEAST, base_of, simplex_weights
from orchestrator.spec.records.constituents import (
    AdapterModel,
    ComposedModel,
    MixtureModel,
    PipelineModel,
    PromptModel,
)
from orchestrator.spec.records.samplers import networks, sampler_problems
from orchestrator.spec.records.terms import KLConstraint, MinmaxObjective, RewardConstraint
from orchestrator.spec.rules.chains import composed_chain_problems, exact_chain_problems
from orchestrator.spec.text.problems import KeyPath, Problem, dotted, suggestion
from trainers.config import ModelConfig
from trainers.reward_parameters import IMAGE_REWARDS, PretrainedParameters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from orchestrator.spec.records.models import SweepSpec
    from trainers.config import RewardConfig

SIMPLEX_TOLERANCE = 1e-6
"""Of the sum of weights."""

_TAKEN = ("kl", "low", "high", "estimator", "least", "ratio")
"""``kl_low`` and such are columns of their own."""
_READ_PROMPTS = {
    kind for kind, parameters in IMAGE_REWARDS.items() if issubclass(parameters, PretrainedParameters)
} - {"aesthetic"}


def composition_problems(spec: SweepSpec, *, enumerable: bool) -> list[Problem]:
    """Return what is wrong with a spec that composes models.

    Args:
        spec: With ``models``.
        enumerable: Its grids are small enough to look at every point.
    """
    assert spec.models is not None, "a composition"
    if (kinds := _kind_problems(spec)) is not None:
        return [kinds]
    problems = [*_dimension_problems(spec.models), *_section_problems(spec)]
    problems += _prompts_problems(spec, spec.models) if networks(spec.models) else _exact_problems(spec)
    if (base := spec.model) is not None and base.pretrained is not None:
        problems += _pipeline_problems(base, ("model",))
    for name, model in spec.models.items():
        if isinstance(model, PipelineModel):
            problems += _pipeline_problems(model, ("models", name))
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
    problems += sampler_problems(spec, objective)
    return problems


def _pipeline_problems(model: ModelConfig | PipelineModel, path: KeyPath) -> list[Problem]:
    source = model.pretrained
    assert source is not None, "a pipeline"
    if problems := name_problems(source, model.revision, model.variant, path):
        return problems
    if isinstance(model, ModelConfig) and model.of_pipelines:
        rule = "goes with the training of one model, and a composition asks its models as they are"
        return [
            Problem(path=(*path, key), rule=rule, value=getattr(model, key)) for key in model.of_pipelines
        ]
    if not flows(source, model.revision):
        return []
    rule = "is trained by flow matching, whose last step has no noise to share: such models are not composed"
    return [Problem(path=(*path, "pretrained"), rule=rule, value=source)]


def clash_problems(
    models: Collection[str],
    rewards: Mapping[str, KeyPath],
    constraints: Sequence[RewardConstraint | KLConstraint],
) -> list[Problem]:
    """Return the problems of models whose columns in the results would be those of something else.

    Args:
        models: Their names.
        rewards: Where each is used first.
        constraints: Those of the spec.
    """
    # What only judges a model may have its name: their columns differ.
    labels = {constraint.label for constraint in constraints}
    own = set(models) - labels
    others = {name.lower(): dotted(path) for name, path in rewards.items() if name not in own}
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


def _kind_problems(spec: SweepSpec) -> Problem | None:
    """Return what keeps the models from being of one kind, beside the right base."""
    assert spec.models is not None, "a composition"
    mixtures = [name for name, model in spec.models.items() if isinstance(model, MixtureModel)]
    if mixtures and len(mixtures) < len(spec.models):
        others = ", ".join(name for name in spec.models if name not in mixtures)
        rule = (
            f"mixtures compose with mixtures only, but {others} {'is' if ',' not in others else 'are'} none"
        )
        return Problem(path=("models",), rule=rule)
    base = spec.model
    if base is None:
        return None
    if mixtures:
        return Problem(path=("model",), rule="goes without 'models': a spec has one of the two", at_key=True)
    if base.mixture is not None:
        rule = "the base of networks is a pipeline: write {pretrained: …}"
        return Problem(path=("model", "mixture"), rule=rule, at_key=True)
    if base.lora is not None:
        rule = (
            "nothing of the base of a composition is trained; what it is distilled into has distillation.lora"
        )
        return Problem(path=("model", "lora"), rule=rule, at_key=True)
    return None


def _dimension_problems(models: Mapping[str, ComposedModel]) -> list[Problem]:
    dimensions = {
        name: model.mixture.dimension for name, model in models.items() if isinstance(model, MixtureModel)
    }
    if len(set(dimensions.values())) <= 1:
        return []
    listed = ", ".join(f"{name} has {size}" for name, size in dimensions.items())
    return [Problem(path=("models",), rule=f"must all have one dimension, but {listed}")]


def _section_problems(spec: SweepSpec) -> Iterator[Problem]:
    assert spec.models is not None, "a composition"
    if spec.resources.most_workers > 1:
        rule = "must be 1 for a composition: every worker would compute the same"
        yield Problem(path=("resources", "workers"), rule=rule, value=spec.resources.most_workers)
    yield from composed_chain_problems(spec.sampling)
    kinds = {type(model) for model in spec.models.values()}
    if spec.sampling.rest > 0 and kinds not in ({AdapterModel}, {PromptModel}):
        rule = "must be 0 for a composition: it has no adapter to leave off"
        if networks(spec.models):
            rule = "must be 0 unless all models are adapters, which are left off, or all prompts, which are joined"
        yield Problem(path=("sampling", "rest"), rule=rule, value=spec.sampling.rest)


def _exact_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Yield what does not go with mixtures."""
    yield from exact_chain_problems(spec.sampling)
    if spec.prompts is not None:
        yield Problem(path=("prompts",), rule="a composition of mixtures has no prompts")
    if spec.distillation is not None:
        rule = "goes with networks: a composition of mixtures has no layers to adapt"
        yield Problem(path=("distillation",), rule=rule, at_key=True)


def _prompts_problems(spec: SweepSpec, models: Mapping[str, ComposedModel]) -> Iterator[Problem]:
    """Yield what networks lack, or have twice."""
    if all(isinstance(model, PromptModel) for model in models.values()):
        if spec.prompts is not None:
            rule = "goes without models that are prompts: each is a prompt of its own"
            yield Problem(path=("prompts",), rule=rule, at_key=True)
    elif spec.prompts is None:
        rule = (
            "adapters and pipelines need prompts: write prompts: {train: …, evaluate: …}, "
            "each a shipped set (such as animals), a text file or a list"
        )
        yield Problem(path=("models",), rule=rule, at_key=True)
    if spec.distillation is not None and base_of(spec) is None:
        rule = "needs a pipeline to adapt: write model: {pretrained: …} beside models"
        yield Problem(path=("distillation",), rule=rule, at_key=True)


def _constraint_problems(spec: SweepSpec, objective: MinmaxObjective) -> Iterator[Problem]:
    for index, constraint in enumerate(spec.constraints):
        path: KeyPath = ("constraints", index)
        if isinstance(constraint, KLConstraint):
            rule = "a composition has no pretrained model: its KLs are the objective"
            if spec.model is not None:
                rule = "the KLs of a composition are its objective: offsets move them apart"
            yield Problem(path=(*path, "kl"), rule=rule, value=constraint.kl)
            continue
        if objective.direction == "forward":
            rule = (
                "rewards go with direction: reverse; under thresholds the best OR is no mixture of the models"
            )
            yield Problem(path=(*path, "reward"), rule=rule)
        if constraint.unit != "absolute":
            rule = "must be absolute for a composition: there is no pretrained model to refer to"
            if spec.model is not None:
                rule = "must be absolute for a composition: thresholds refer to none of its models"
            yield Problem(path=(*path, "unit"), rule=rule, value=constraint.unit)
        else:
            percent = next((value for value in constraint.written if isinstance(value, str)), None)
            if percent is not None:
                rule = f"the percentage {percent!r} refers to a pretrained model, and a composition has none"
                yield Problem(path=(*path, "at_least"), rule=rule)


def _weight_problems(spec: SweepSpec, objective: MinmaxObjective, *, enumerable: bool) -> Iterator[Problem]:
    for index, settings in spec.weightings:
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


def prompted_problems(
    spec: SweepSpec, rewards: Mapping[str, RewardConfig], targets: Mapping[KeyPath, str]
) -> Iterator[Problem]:
    """Yield the constraints on rewards that read a prompt where every model has its own.

    Args:
        spec: With ``models``.
        rewards: By name.
        targets: Name of the reward of every use.
    """
    models = (spec.models or {}).values()
    if not all(isinstance(model, PromptModel) for model in models):
        return
    for index in range(len(spec.constraints)):
        path: KeyPath = ("constraints", index)
        reward = rewards.get(targets.get(path, ""))
        if reward is not None and reward.text is None and reward.kind in _READ_PROMPTS:
            names = [name for name, other in rewards.items() if other.text is not None or other.kind == LEAST]
            rule = f"{reward.name!r} scores images against their prompt, and here every model has its own"
            hint = f": name one of {', '.join(names)}" if names else ""
            yield Problem(path=(*path, "reward"), rule=rule, hint=hint)
