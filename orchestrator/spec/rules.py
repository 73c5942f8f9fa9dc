"""Rules between the parts of a spec, and what its names stand for.

Rewards are defined where they are first used, in the objective or in a constraint, and may be used again by
name. Results have columns by name, so names must tell rewards and constraints apart also where case does
not count.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.spec import registry
from orchestrator.spec.compositions import clash_problems, composition_problems
from orchestrator.spec.problems import KeyPath, Problem, dotted, nearest, suggestion
from orchestrator.spec.searches import CERTIFIED, search_problems, searched_count
from orchestrator.spec.terms import (
    KLConstraint,
    MinmaxObjective,
    RewardConstraint,
    RewardObjective,
    WeightGrid,
)
from trainers.config import EMBEDDED, REWARD_PARAMETERS, MixtureConfig, ModelConfig, RewardConfig
from trainers.reward_parameters import IMAGE_REWARDS, OPENAI_CLIP

if TYPE_CHECKING:
    from orchestrator.spec.models import SweepSpec

MAX_TRIALS = 100_000
"""A plan larger than this is a slip of the pen."""

_NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
_VECTOR = {"linear": "direction", "quadratic": "center"}
"""The parameter of a built-in reward that is as long as a sample."""


@dataclass(slots=True, kw_only=True)
class Rewards:
    """The rewards of a spec by name, and which one each use refers to."""

    by_name: dict[str, RewardConfig] = field(default_factory=dict)
    """In the order of the spec."""
    targets: dict[KeyPath, str] = field(default_factory=dict)
    """Name of the reward that the objective or constraint at a path is about."""
    problems: list[Problem] = field(default_factory=list)


def resolve_rewards(spec: SweepSpec) -> Rewards:
    """Return what the reward names of ``spec`` stand for."""
    found = Rewards()
    uses = reward_uses(spec)
    for path, use in uses:
        if not isinstance(use.reward, str):
            _define(found, path, use)
    # A use without a name of its own defines the reward for the others, wherever it stands.
    for path, use in sorted(uses, key=lambda item: item[1].label != item[1].reward):
        if isinstance(use.reward, str):
            _resolve_name(found, path, use, use.reward)
    found.by_name = {name: _with_clip(reward, spec.model) for name, reward in found.by_name.items()}
    order = dict.fromkeys(found.targets[path] for path, _ in uses if path in found.targets)
    found.by_name = {name: found.by_name[name] for name in order}
    return found


def reward_uses(spec: SweepSpec) -> list[tuple[KeyPath, RewardObjective | RewardConstraint]]:
    """Return the parts of ``spec`` that are about a reward, and where they stand."""
    parts: list[tuple[KeyPath, object]] = [(("objective",), spec.objective)]
    parts += [(("constraints", index), constraint) for index, constraint in enumerate(spec.constraints)]
    return [(path, part) for path, part in parts if isinstance(part, RewardObjective | RewardConstraint)]


def problems_of(spec: SweepSpec) -> list[Problem]:
    """Return every rule between the parts of ``spec`` that it breaks."""
    rewards = resolve_rewards(spec)
    problems = list(rewards.problems)
    problems += _kind_problems(spec, rewards)
    problems += _dimension_problems(spec)
    problems += _name_problems(spec, rewards)
    problems += search_problems(spec)
    if spec.models is None:
        problems += _alignment_problems(spec, rewards, settled=not problems)
    else:
        count = trial_count(spec)
        problems += composition_problems(spec, enumerable=count <= MAX_TRIALS)
        problems += clash_problems(spec.models, rewards.targets, spec.constraints)
    if (count := trial_count(spec)) > MAX_TRIALS:
        rule = f"the grids, searches and seeds make {count:,} trials; at most {MAX_TRIALS:,} are allowed"
        problems.append(Problem(path=(), rule=rule))
    return problems


def _alignment_problems(spec: SweepSpec, rewards: Rewards, *, settled: bool) -> list[Problem]:
    """Rules of one pretrained model; those about what is missing only where nothing else is wrong."""
    if isinstance(spec.objective, MinmaxObjective):
        rule = "composes several models: write models: {NAME: {mixture: …}} in place of model"
        return [Problem(path=("objective", "minmax_kl"), rule=rule)]
    problems = _model_problems(spec)
    problems += _threshold_problems(spec)
    problems += _weight_problems(spec, rewards)
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
    total = 0
    for method in spec.methods:
        if isinstance(method, str):
            total += 0 if spec.search.kind == CERTIFIED else thresholds
            continue
        if method.weighted.search is not None:
            continue
        weights = method.weighted.weights
        swept: list[Any] = [method.weighted.scale]
        swept += [] if isinstance(weights, str) else weights.values()
        total += math.prod(len(getattr(value, "grid", (value,))) for value in swept)
    return total * len(spec.seeds) + searched_count(spec)


def _define(found: Rewards, path: KeyPath, use: RewardObjective | RewardConstraint) -> None:
    """Add the reward that is written out at ``path``."""
    assert isinstance(use.reward, dict)
    [(kind, parameters)] = use.reward.items()
    _add(found, path, use, kind, parameters)


def _add(
    found: Rewards,
    path: KeyPath,
    use: RewardObjective | RewardConstraint,
    kind: str,
    parameters: dict[str, Any],
) -> None:
    """Add a reward under the name that it has at ``path``, unless another has that name."""
    name = use.label
    if not _is_name(found, path, name):
        return
    reward = RewardConfig(name=name, kind=kind, parameters=parameters)
    if found.by_name.setdefault(name, reward) == reward:
        found.targets[path] = name
        return
    first = next(place for place, target in found.targets.items() if target == name)
    rule = f"another reward is called {name!r} already, at {dotted(first)}; give one of them a name"
    at = (*path, "name") if use.name else (*path, "reward")
    found.problems.append(Problem(path=at, rule=rule, value=use.name or use.reward))


def _is_name(found: Rewards, path: KeyPath, name: str) -> bool:
    """Return whether the kind of a reward can serve as its name; note the problem if not."""
    if re.fullmatch(_NAME, name):
        return True
    rule = f"the kind {name!r} is no name for a column of results: give the reward a name"
    found.problems.append(Problem(path=(*path, "reward"), rule=rule))
    return False


def _resolve_name(
    found: Rewards, path: KeyPath, use: RewardObjective | RewardConstraint, reference: str
) -> None:
    """Find the reward that a plain name refers to: one defined in the spec, or one that needs no parameters."""
    at = (*path, "reward")
    if reference in found.by_name:
        found.targets[path] = reference
        return
    if reference in registry.REWARD_KINDS:
        model = registry.REWARD_KINDS[reference]
        required = [key for key, info in model.model_fields.items() if info.is_required()]
        if not required:
            _add(found, path, use, reference, model().model_dump(mode="json"))
            return
        rule = f"the reward {reference!r} needs parameters: write {{{reference}: {{{required[0]}: …}}}}"
        found.problems.append(Problem(path=at, rule=rule, value=reference))
    elif registry.is_registered(registry.REWARDS, reference):
        _add(found, path, use, reference, {})
    else:
        choices = [*found.by_name, *registry.registered(registry.REWARDS)]
        hint = suggestion(reference, list(dict.fromkeys(choices)), "known")
        rule = f"unknown reward {reference!r}"
        found.problems.append(Problem(path=at, rule=rule, value=reference, hint=hint))


def _with_clip(reward: RewardConfig, model: ModelConfig | None) -> RewardConfig:
    """Return ``clip`` with the CLIP that belongs to the pretrained model, unless it names another."""
    if reward.kind != "clip" or reward.parameters["model"] is not None:
        return reward
    source = EMBEDDED if model is not None and model.pretrained == EMBEDDED else OPENAI_CLIP
    return reward.model_copy(update={"parameters": reward.parameters | {"model": source}})


def _model_problems(spec: SweepSpec) -> list[Problem]:
    """What goes with a mixture, what with a pipeline, and what needs a GPU."""
    assert spec.model is not None, "not a composition"
    problems = (
        _mixture_problems(spec) if spec.model.mixture is not None else _pipeline_problems(spec, spec.model)
    )
    if spec.training.optimizer == "adam_8bit":
        rule = ""
        if spec.model.mixture is not None:
            rule = "needs a GPU, which training on a mixture does not use: write adam"
        elif spec.resources.gpus_per_worker == 0:
            rule = "needs a GPU: set resources.gpus_per_worker, or write adam"
        if rule:
            at: KeyPath = ("training", "optimizer")
            problems.append(Problem(path=at, rule=rule, value=spec.training.optimizer))
    return problems


def _mixture_problems(spec: SweepSpec) -> list[Problem]:
    problems = []
    if spec.prompts is not None:
        problems.append(Problem(path=("prompts",), rule="a mixture has no prompts"))
    if spec.sampling.rest > 0:
        rule = "must be 0 for a mixture: it is trained in every step"
        problems.append(Problem(path=("sampling", "rest"), rule=rule, value=spec.sampling.rest))
    return problems


def _pipeline_problems(spec: SweepSpec, model: ModelConfig) -> list[Problem]:
    source = model.pretrained
    assert source is not None, "a model is a mixture or a pipeline"
    at: KeyPath = ("model", "pretrained")
    if source != EMBEDDED and "/" not in source and nearest(source, [EMBEDDED]):
        # Hub ids of this family are OWNER/NAME, and a directory can always be written with a slash.
        rule = f"is no hub id (OWNER/NAME); a directory of this name is written ./{source}"
        return [Problem(path=at, rule=rule, value=source, hint=f"; did you mean {EMBEDDED!r}?")]
    if spec.prompts is None:
        rule = (
            "needs prompts: write prompts: {train: …, evaluate: …}, "
            "each a shipped set (such as animals), a text file or a list"
        )
        return [Problem(path=at, rule=rule, value=source)]
    if source == EMBEDDED and model.revision is not None:
        rule = "goes with a hub id: the shipped pipeline has no revisions"
        return [Problem(path=("model", "revision"), rule=rule, value=model.revision)]
    return []


def _mixture(spec: SweepSpec) -> MixtureConfig | None:
    """Return a mixture whose points are sampled: the model, or the first of several, which have one dimension."""
    if spec.models is not None:
        return next(iter(spec.models.values())).mixture
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
    first = {name: path for path, name in reversed(rewards.targets.items())}
    problems = [
        Problem(path=(*first[name], "reward"), rule=rule.format(reward.kind))
        for name, reward in rewards.by_name.items()
        if reward.kind in wrong
    ]
    if spec.models is not None:
        rule = "the reward {!r} does not go with a composition, only linear and quadratic ones do"
        problems += [
            Problem(path=(*first[name], "reward"), rule=rule.format(reward.kind))
            for name, reward in rewards.by_name.items()
            if reward.kind not in REWARD_PARAMETERS and reward.kind not in IMAGE_REWARDS
        ]
    return problems


def _dimension_problems(spec: SweepSpec) -> list[Problem]:
    problems: list[Problem] = []
    mixture = _mixture(spec)
    if mixture is None:
        return problems
    dimension = mixture.dimension
    for path, use in reward_uses(spec):
        if isinstance(use.reward, str):
            continue
        [(kind, parameters)] = use.reward.items()
        vector = parameters.get(_VECTOR.get(kind, ""))
        if vector is not None and len(vector) != dimension:
            rule = f"must have length {dimension}, the dimension of the mixture, got {len(vector)}"
            at = (*path, "reward", kind, _VECTOR[kind])
            problems.append(Problem(path=at, rule=rule, value=vector))
    return problems


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
            problems.append(Problem(path=(*path, "name"), rule=rule))
    places = {name: path for path, name in reversed(rewards.targets.items())}
    return problems + _clashes(seen | places)


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
        problems += [Problem(path=(*path, "name"), rule=rule) for rule in rules]
    return problems


def _order(path: KeyPath) -> tuple[int, int]:
    """Return what sorts places as they are numbered, the objective first."""
    return len(path), int(path[-1]) if len(path) > 1 else 0


def _threshold_problems(spec: SweepSpec) -> list[Problem]:
    problems = []
    for index, constraint in enumerate(spec.constraints):
        if not isinstance(constraint, RewardConstraint) or constraint.unit == "relative":
            continue
        percent = next((value for value in constraint.written if isinstance(value, str)), None)
        if percent is not None:
            rule = f"the percentage {percent!r} needs unit: relative"
            problems.append(Problem(path=("constraints", index, "at_least"), rule=rule))
    return problems


def _weight_problems(spec: SweepSpec, rewards: Rewards) -> list[Problem]:
    problems = []
    names = list(rewards.by_name)
    for index, method in enumerate(spec.methods):
        if isinstance(method, str) or isinstance(method.weighted.weights, str):
            continue
        path: KeyPath = ("methods", index, "weighted", "weights")
        for name in method.weighted.weights:
            if name not in names and not rewards.problems:
                hint = suggestion(name, names, "rewards of this spec")
                rule = f"unknown reward {name!r}"
                problems.append(Problem(path=(*path, name), rule=rule, hint=hint, at_key=True))
        if not any(map(_positive, method.weighted.weights.values())):
            problems.append(Problem(path=path, rule="needs at least one weight greater than 0"))
    return problems


def _positive(weight: float | WeightGrid) -> bool:
    return max(weight.grid) > 0 if isinstance(weight, WeightGrid) else weight > 0
