"""Rules between the parts of a spec.

Results have columns by name, so names must tell rewards and constraints apart also where case does not count.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from orchestrator.spec.files.pipelines import (
    asking_problems,
    family_named,
    flows,
    known_pipeline,
    name_problems,
)
from orchestrator.spec.records.constituents import MixtureModel
from orchestrator.spec.records.rewards import Rewards, part_of, resolve_rewards, reward_uses
from orchestrator.spec.records.samplers import uncomposed_problems
from orchestrator.spec.records.searches import CERTIFIED, search_problems, searched_count
from orchestrator.spec.records.terms import (
    KLConstraint,
    MinmaxObjective,
    RewardConstraint,
    RewardObjective,
    WeightGrid,
)
from orchestrator.spec.rules.chains import (
    exact_chain_problems,
    flow_chain_problems,
    pipeline_chain_problems,
)
from orchestrator.spec.rules.compositions import (
    clash_problems,
    composition_problems,
    prompted_problems,
)
from orchestrator.spec.rules.frontiers import frontier_problems
from orchestrator.spec.rules.gradients import gradient_problems
from orchestrator.spec.rules.offload import offload_problems
from orchestrator.spec.rules.packs import pack_problems, shard_problems
from orchestrator.spec.rules.quantised import quantised_problems
from orchestrator.spec.text.problems import KeyPath, Problem, dotted, suggestion
from trainers.config import REWARD_PARAMETERS, MixtureConfig, ModelConfig
from trainers.reward_parameters import IMAGE_REWARDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import SweepSpec

MAX_TRIALS = 100_000
"""A plan larger than this is a slip of the pen."""

_MOST_ACCUMULATED = 1_000
"""More micro-batches than these are nobody's batch: a rule that would ask for them asks for other workers."""

_VECTOR = {"linear": "direction", "quadratic": "center"}
"""The parameter of a built-in reward that is as long as a sample."""


def problems_of(spec: SweepSpec) -> list[Problem]:
    """Return every rule between the parts of ``spec`` that it breaks."""
    rewards = resolve_rewards(spec)
    problems = list(rewards.problems)
    problems += _kind_problems(spec, rewards)
    problems += _dimension_problems(spec)
    problems += _name_problems(spec, rewards)
    problems += _group_problems(spec)
    if spec.evaluation.as_deployed is not None and (spec.models is not None or _mixture(spec) is not None):
        rule = "is of an adapter that a pipeline is trained to: model: {pretrained: …}"
        problems.append(Problem(path=("evaluation", "as_deployed"), rule=rule, at_key=True))
    if spec.models is not None and spec.rewards:
        rule = "judges go with the training of one model; those of a composition stand beside its models"
        problems.append(Problem(path=("rewards",), rule=rule, at_key=True))
    problems += search_problems(spec)
    problems += frontier_problems(spec, rewards)
    problems += _elastic_problems(spec)
    problems += pack_problems(spec)
    problems += shard_problems(spec)
    problems += quantised_problems(spec)
    problems += offload_problems(spec)
    if spec.models is None:
        problems += _alignment_problems(spec, rewards, settled=not problems)
    else:
        count = trial_count(spec)
        problems += composition_problems(spec, enumerable=count <= MAX_TRIALS)
        problems += clash_problems(spec.models, rewards.places, spec.constraints)
        problems += prompted_problems(spec, rewards.by_name, rewards.targets)
    if (count := trial_count(spec)) > MAX_TRIALS:
        rule = f"the grids, searches and seeds make {count:,} trials; at most {MAX_TRIALS:,} are allowed"
        problems.append(Problem(path=(), rule=rule))
    return problems


def _alignment_problems(spec: SweepSpec, rewards: Rewards, *, settled: bool) -> list[Problem]:
    """Rules of one pretrained model; those about what is missing only where nothing else is wrong."""
    if found := list(uncomposed_problems(spec)):
        return found
    if isinstance(spec.objective, MinmaxObjective):
        rule = "composes several models: write models: {NAME: {mixture: …}} in place of model"
        return [Problem(path=("objective", "minmax_kl"), rule=rule)]
    problems = _model_problems(spec)
    problems += _threshold_problems(spec)
    problems += _weight_problems(spec, rewards)
    problems += gradient_problems(spec, rewards)
    has_budget = any(isinstance(constraint, KLConstraint) for constraint in spec.constraints)
    if isinstance(spec.objective, RewardObjective) and not has_budget:
        rule = (
            "needs a KL budget, or the reward grows without bound: "
            "add the constraint {kl: pretrained, at_most: NATS}"
        )
        problems.append(Problem(path=("objective", "reward"), rule=rule))
    if not rewards.targets and settled and not problems:
        rule = "needs at least one reward, or the pretrained model is the solution"
        problems.append(Problem(path=("constraints",), rule=rule))
    return problems


def trial_count(spec: SweepSpec) -> int:
    """Return the greatest number of trials, those counted twice that two methods have in common."""
    thresholds = math.prod(len(constraint.values) for constraint in spec.constraints)
    total = len(spec.frontiers)
    if spec.search.kind != CERTIFIED:
        total += thresholds * spec.methods.count("constrained")
    for _, settings in spec.weightings:
        if settings.search is not None:
            continue
        weights = settings.weights
        swept: list[Any] = [settings.scale]
        swept += [] if isinstance(weights, str) else weights.values()
        total += math.prod(len(getattr(value, "grid", (value,))) for value in swept)
    return total * len(spec.seeds) + searched_count(spec)


def _elastic_problems(spec: SweepSpec) -> list[Problem]:
    """Every number of workers must be able to share an optimiser step evenly, and a worker's part whole prompts."""
    each, size = spec.training.images_per_prompt, spec.training.batch_per_worker
    if size % each:
        rule = f"the {size} samples of training.batch_per_worker cannot be {each} of each prompt: write a divisor of it"
        return [Problem(path=("training", "images_per_prompt"), rule=rule, value=each)]
    if each > 1 and spec.duals.paired == "stored":
        rule = f"stored samples have an image of a prompt at a time, and images_per_prompt asks for {each}: write noise"
        return [Problem(path=("duals", "paired"), rule=rule, value="stored")]
    least, most = spec.resources.least_workers, spec.resources.most_workers
    micro = spec.training.accumulation * most
    uneven = next((count for count in range(least, most + 1) if micro % count), None)
    if uneven is None:
        return []
    factor = 1
    for count in range(least, most + 1):
        factor = math.lcm(factor, count // math.gcd(count, most))
        if factor > _MOST_ACCUMULATED:
            break
    advice = f"make training.accumulation a multiple of {factor}, or choose other limits"
    if factor > _MOST_ACCUMULATED:
        advice = "choose closer limits"
    rule = (
        f"{uneven} workers cannot share the {micro} micro-batches of an optimiser step evenly (accumulation "
        f"{spec.training.accumulation} × {most} workers): {advice}"
    )
    return [Problem(path=("resources", "workers"), rule=rule, at_key=True)]


def _model_problems(spec: SweepSpec) -> list[Problem]:
    """What goes with a mixture, what with a pipeline, and what needs a GPU."""
    assert spec.model is not None, "not a composition"
    exact = spec.model.mixture is not None
    problems = list(_mixture_problems(spec) if exact else _pipeline_problems(spec, spec.model))
    if spec.training.gradient_checkpointing == "selective" and not exact:
        problems += _selective_problems(spec)
    if spec.training.optimizer == "adam_8bit":
        rule = ""
        if exact:
            rule = "needs a GPU, which training on a mixture does not use: write adam"
        elif spec.resources.gpus_per_worker == 0:
            rule = "needs a GPU: set resources.gpus_per_worker, or write adam"
        if rule:
            at: KeyPath = ("training", "optimizer")
            problems.append(Problem(path=at, rule=rule, value=spec.training.optimizer))
    return problems


def _selective_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Half precision and a compiler decide for themselves what they keep."""
    training = spec.training
    for key, ready in (("precision", training.precision == "fp32"), ("compile", not training.compile)):
        if not ready:
            value = getattr(training, key)
            rule = f"goes with precision fp32 and without compile, and training.{key} is {value}: write true or false"
            at: KeyPath = ("training", "gradient_checkpointing")
            yield Problem(path=at, rule=rule, value="selective")


def _mixture_problems(spec: SweepSpec) -> Iterator[Problem]:
    if spec.prompts is not None:
        yield Problem(path=("prompts",), rule="a mixture has no prompts")
    if spec.sampling.rest > 0:
        rule = "must be 0 for a mixture: it is trained in every step"
        yield Problem(path=("sampling", "rest"), rule=rule, value=spec.sampling.rest)
    yield from exact_chain_problems(spec.sampling)


def _pipeline_problems(spec: SweepSpec, model: ModelConfig) -> list[Problem]:
    source = model.pretrained
    assert source is not None, "a model is a mixture or a pipeline"
    if problems := name_problems(source, model.revision, model.variant, ("model",)):
        return problems
    flow = flows(source, model.revision)
    if problems := list((flow_chain_problems if flow else pipeline_chain_problems)(spec.sampling)):
        return problems
    if problems := list(_family_problems(spec, model)):
        return problems
    if spec.prompts is None:
        rule = (
            "needs prompts: write prompts: {train: …, evaluate: …}, "
            "each a shipped set (such as animals), a text file or a list"
        )
        return [Problem(path=("model", "pretrained"), rule=rule, value=source)]
    return []


def _family_problems(spec: SweepSpec, model: ModelConfig) -> Iterator[Problem]:
    """Yield what the family of a pipeline, as far as it is known, does not have or do."""
    source = model.pretrained
    assert source is not None, "a pipeline"
    yield from asking_problems(model, spec.sampling, spec.evaluation.as_deployed)
    family = family_named(source, model.revision)
    if family is None:
        return
    if spec.training.compile and not family.compiles:
        rule = (
            f"does not go with {family.name}, whose network does other operations for texts of other lengths"
        )
        yield Problem(path=("training", "compile"), rule=rule, value=True)
    if not family.flow:
        yield from _too_many_steps(spec, source, model.revision)


def _too_many_steps(spec: SweepSpec, source: str, revision: str | None) -> Iterator[Problem]:
    """Yield samplers with more steps than a diffusion has noise levels, as far as its scheduler is known here."""
    known = known_pipeline(source, revision)
    levels = (known[1] if known is not None else {}).get("scheduler", {}).get("num_train_timesteps", 1000)
    asked: dict[KeyPath, int] = {("sampling", "steps"): spec.sampling.steps}
    if (deployed := spec.evaluation.as_deployed) is not None:
        asked["evaluation", "as_deployed", "steps"] = deployed.steps
    for path, steps in asked.items():
        if isinstance(levels, int) and steps > levels:
            yield Problem(
                path=path, rule=f"must be at most {levels}, the noise levels of the model", value=steps
            )


def _mixture(spec: SweepSpec) -> MixtureConfig | None:
    """Return a mixture whose points are sampled: the model, or the first of several, which have one dimension."""
    if spec.models is not None:
        mixtures = [model.mixture for model in spec.models.values() if isinstance(model, MixtureModel)]
        return mixtures[0] if mixtures else None
    assert spec.model is not None, "a spec has model or models"
    return spec.model.mixture


def _kind_problems(spec: SweepSpec, rewards: Rewards) -> list[Problem]:
    """Built-in rewards score points or images; those of other packages may score either."""
    if _mixture(spec) is not None:
        wrong, rule = IMAGE_REWARDS, "the reward {!r} scores images: it needs model: {{pretrained: …}}"
    else:
        wrong, rule = (
            REWARD_PARAMETERS,
            "the reward {!r} scores points of a mixture: it needs model: {{mixture: …}}",
        )
    first = rewards.places
    problems = [
        Problem(path=part_of(first[name], "reward"), rule=rule.format(reward.kind))
        for name, reward in rewards.everything.items()
        if reward.kind in wrong
    ]
    if spec.models is not None and _mixture(spec) is not None:
        rule = "the reward {!r} does not go with a composition, only linear and quadratic ones do"
        problems += [
            Problem(path=part_of(first[name], "reward"), rule=rule.format(reward.kind))
            for name, reward in rewards.everything.items()
            if reward.kind not in REWARD_PARAMETERS and reward.kind not in IMAGE_REWARDS
        ]
    return problems


def _dimension_problems(spec: SweepSpec) -> Iterator[Problem]:
    mixture = _mixture(spec)
    if mixture is None:
        return
    dimension = mixture.dimension
    for path, use in reward_uses(spec).items():
        if isinstance(use.reward, str):
            continue
        [(kind, parameters)] = use.reward.items()
        vector = parameters.get(_VECTOR.get(kind, ""))
        if vector is not None and len(vector) != dimension:
            rule = f"must have length {dimension}, the dimension of the mixture, got {len(vector)}"
            at = part_of(path, "reward", kind, _VECTOR[kind])
            yield Problem(path=at, rule=rule, value=vector)


def _name_problems(spec: SweepSpec, rewards: Rewards) -> list[Problem]:
    """Names become parts of column names: ``reward_NAME``, ``reward_NAME_low``, ``threshold_NAME``."""
    problems: list[Problem] = []
    seen: dict[str, KeyPath] = {}
    for index, constraint in enumerate(spec.constraints):
        path: KeyPath = ("constraints", index)
        at = (*path, "name") if constraint.name else path
        label = constraint.label
        if label in seen:
            rule = f"the constraint at {dotted(seen[label])} is called {label!r} too; give one of them a name"
            problems.append(Problem(path=at, rule=rule))
        elif label in rewards.by_name and rewards.targets.get(path, label) != label:
            rule = f"{label!r} is the name of another reward"
            problems.append(Problem(path=at, rule=rule))
        elif isinstance(constraint, KLConstraint) and label in rewards.by_name:
            problems.append(Problem(path=at, rule=f"{label!r} is the name of a reward"))
        seen.setdefault(label, path)
    for path, name in rewards.targets.items():
        if name.lower() == "kl":
            rule = f"a reward must not be called {name!r}, results have a column of that name"
            problems.append(Problem(path=part_of(path, "name"), rule=rule))
    return problems + _clashes(seen | rewards.places)


def _clashes(places: dict[str, KeyPath]) -> list[Problem]:
    """Return the problems of names whose columns some readers, or all, cannot tell apart."""
    problems = []
    for name, path in places.items():
        rules = [
            f"the names {name!r} and {other!r} differ in case only, and columns of the results would clash"
            for other, there in places.items()
            if other.lower() == name.lower() and _order(there) < _order(path)
        ]
        rules += [
            f"the name {name!r} would clash with a column of {other!r} in the results"
            for other in places
            if name in {f"{other}_low", f"{other}_high"}
        ]
        problems += [Problem(path=part_of(path, "name"), rule=rule) for rule in rules]
    return problems


def _order(path: KeyPath) -> tuple[Any, ...]:
    """Return what sorts places as they are numbered, the objective first and what judges models last."""
    return (len(path), *path[1:])


def _group_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Groups are of the prompts that one model is trained on, and an evaluation must ask for some of each."""
    for index, constraint in enumerate(spec.constraints):
        if not isinstance(constraint, RewardConstraint) or constraint.where is None or spec.prompts is None:
            continue
        path: KeyPath = ("constraints", index, "where")
        asked = spec.prompts.in_turn("evaluate", spec.evaluation.seed)[: spec.evaluation.images]
        if spec.models is not None:
            yield Problem(path=path, rule="groups go with the training of one model, not with a composition")
        elif not spec.prompts.group(constraint.where).intersection(asked):
            rule = (
                f"none of the {len(asked)} held-out prompts that {spec.evaluation.images} images ask for is in the "
                "group: raise evaluation.images"
            )
            yield Problem(path=path, rule=rule)


def _threshold_problems(spec: SweepSpec) -> Iterator[Problem]:
    for index, constraint in enumerate(spec.constraints):
        if not isinstance(constraint, RewardConstraint) or constraint.unit == "relative":
            continue
        percent = next((value for value in constraint.written if isinstance(value, str)), None)
        if percent is not None:
            rule = f"the percentage {percent!r} needs unit: relative"
            yield Problem(path=("constraints", index, "at_least"), rule=rule)


def _weight_problems(spec: SweepSpec, rewards: Rewards) -> Iterator[Problem]:
    names = list(rewards.by_name)
    for index, settings in spec.weightings:
        if isinstance(settings.weights, str):
            continue
        path: KeyPath = ("methods", index, "weighted", "weights")
        for name in settings.weights:
            if name not in names and not rewards.problems:
                hint = suggestion(name, names, "rewards of this spec")
                rule = f"unknown reward {name!r}"
                yield Problem(path=(*path, name), rule=rule, hint=hint, at_key=True)
        if not any(map(_positive, settings.weights.values())):
            yield Problem(path=path, rule="needs at least one weight greater than 0")


def _positive(weight: float | WeightGrid) -> bool:
    return max(weight.grid) > 0 if isinstance(weight, WeightGrid) else weight > 0
