"""What the reward names of a spec stand for.

Rewards are defined where they are first used, in the objective, in a constraint or in a model that is composed, and may
be used again by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.spec.records import registry
from orchestrator.spec.records.compositions import family_of, prompt_rewards
from orchestrator.spec.records.constituents import Judge, judges
from orchestrator.spec.records.terms import MinmaxObjective, OfReward, RewardConstraint
from orchestrator.spec.text.problems import KeyPath, Problem, dotted, suggestion
from trainers.config import EMBEDDED, SHIPPED, RewardConfig
from trainers.reward_parameters import OPENAI_CLIP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.spec.records.models import SweepSpec

_NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"


@dataclass(slots=True, kw_only=True)
class Rewards:
    """The rewards of a spec by name, and which one each use refers to."""

    by_name: dict[str, RewardConfig] = field(default_factory=dict)
    """In the order of the spec."""
    targets: dict[KeyPath, str] = field(default_factory=dict)
    """Name of the reward that the objective or constraint at a path is about, or that judges a model."""
    judged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What judges each model of a composition."""
    places: dict[str, KeyPath] = field(default_factory=dict)
    """Where each name is used first, those of models outside the composition included."""
    judges: dict[str, RewardConfig] = field(default_factory=dict)
    """Those that are only measured."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def everything(self) -> dict[str, RewardConfig]:
        """Those of the problem, and judges."""
        return self.by_name | self.judges


Use = OfReward | Judge


def resolve_rewards(spec: SweepSpec) -> Rewards:
    """Return what the reward names of ``spec`` stand for."""
    found = Rewards()
    uses: dict[KeyPath, Use] = {
        path: use.ungrouped if isinstance(use, RewardConstraint) and use.where else use
        for path, use in reward_uses(spec).items()
    }
    prompted = {path: use for path, use in uses.items() if isinstance(use, Judge) and use.prompt is not None}
    late = _resolve(found, {path: use for path, use in uses.items() if path not in prompted})
    composed = spec.objective.minmax_kl if isinstance(spec.objective, MinmaxObjective) else ()
    least = _add_prompted(found, prompted, composed)
    for path, use in late.items():  # which may name rewards of prompts
        _resolve_name(found, path, use, str(use.reward))
    _restrict(found, spec)
    found.places |= {name: path for path, name in reversed(found.targets.items())}
    measured: list[str] = []
    for path, use in uses.items():
        name = found.targets.get(path)
        if name is not None and isinstance(use, Judge):
            found.judged[use.model] = (*found.judged.get(use.model, ()), name)
        if (
            name is not None
            and path[0] != "rewards"
            and (not isinstance(use, Judge) or use.model in composed)
        ):
            measured.append(name)
    family = family_of(spec)
    for path in uses:
        if path[0] == "rewards" and (name := found.targets.get(path)) is not None:
            _add_judge(found, path, _with_clip(found.by_name[name], family), name in measured)
    order = dict.fromkeys(measured + least)
    found.by_name = {name: _with_clip(found.by_name[name], family) for name in order}
    return found


def _add_judge(found: Rewards, path: KeyPath, reward: RewardConfig, trained: bool) -> None:
    """Add a reward that is only measured."""
    name = reward.name
    if trained or name in found.judges:
        rule = (
            f"{name!r} is in the objective or a constraint, and is measured as that"
            if trained
            else f"{name!r} is in the list twice"
        )
        found.problems.append(Problem(path=part_of(path, "reward"), rule=rule))
    found.judges[name] = reward


def _restrict(found: Rewards, spec: SweepSpec) -> None:
    """Let constraints on groups of prompts be about rewards of their own."""
    groups = {
        ("constraints", index): constraint
        for index, constraint in enumerate(spec.constraints)
        if isinstance(constraint, RewardConstraint)
        and constraint.where
        and constraint.label != constraint.reward
    }
    plain = {name: path for path, name in found.targets.items() if path not in groups}
    restricted: dict[str, RewardConfig] = {}
    for path, constraint in groups.items():
        if (target := found.targets.get(path)) is None:
            continue
        label, where = constraint.label, constraint.where
        reward = found.by_name[target].model_copy(update={"name": label, "where": where})
        if (first := plain.get(label)) is not None:
            rule = f"another reward is called {label!r} already, at {dotted(first)}; give one of them a name"
            found.problems.append(Problem(path=part_of(path, "name"), rule=rule))
        restricted[label], found.targets[path] = reward, label
    found.by_name |= restricted


def _resolve(found: Rewards, uses: Mapping[KeyPath, Use]) -> dict[KeyPath, Use]:
    """Find what ``uses`` stand for; returns those whose name nothing has so far."""
    for path, use in uses.items():
        if not isinstance(use.reward, str):
            _define(found, path, use)
    late = {}
    # A use without a name of its own defines the reward for the others, wherever it stands.
    for path, use in sorted(uses.items(), key=lambda item: item[1].label != item[1].reward):
        if isinstance(use.reward, str):
            if use.reward in found.by_name or registry.is_registered(registry.REWARDS, use.reward):
                _resolve_name(found, path, use, use.reward)
            else:
                late[path] = use
    return late


def _add_prompted(found: Rewards, uses: Mapping[KeyPath, Judge], composed: Sequence[str]) -> list[str]:
    """Add a reward for every prompt that is judged; returns the names of those that are the least of others."""
    plain = Rewards(by_name=dict(found.by_name), targets=dict(found.targets))
    for path, use in _resolve(plain, uses).items():
        _resolve_name(plain, path, use, str(use.reward))
    found.problems += plain.problems
    named = {
        path: (use, plain.by_name[plain.targets[path]]) for path, use in uses.items() if path in plain.targets
    }
    taken = {name: path for path, name in found.targets.items()}
    rewards, problems = prompt_rewards(named, composed, taken)
    found.problems += problems
    for name, (path, reward) in rewards.items():
        found.by_name.setdefault(name, reward)
        if reward.text is None:
            found.places[name] = path
        else:
            found.targets[path] = name
    return [name for name, (_, reward) in rewards.items() if reward.text is None and name not in taken]


def reward_uses(spec: SweepSpec) -> dict[KeyPath, Use]:
    """Return the parts of ``spec`` that are about a reward, and where they stand."""
    parts: list[tuple[KeyPath, object]] = [(("objective",), spec.objective)]
    parts += [(("constraints", index), constraint) for index, constraint in enumerate(spec.constraints)]
    parts += [(("rewards", index), judge) for index, judge in enumerate(spec.rewards)]
    parts += judges(spec.models)
    return {path: part for path, part in parts if isinstance(part, Use)}


def part_of(path: KeyPath, *keys: str) -> KeyPath:
    """Return where a part of the use at ``path`` is; a model's reward is all of it."""
    return path if path[0] == "models" else (*path, *keys)


def _define(found: Rewards, path: KeyPath, use: Use) -> None:
    """Add the reward that is written out at ``path``."""
    assert isinstance(use.reward, dict)
    [(kind, parameters)] = use.reward.items()
    _add(found, path, use, kind, parameters)


def _add(
    found: Rewards,
    path: KeyPath,
    use: Use,
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
    at = part_of(path, "name" if use.name else "reward")
    found.problems.append(Problem(path=at, rule=rule, value=use.name or use.reward))


def _is_name(found: Rewards, path: KeyPath, name: str) -> bool:
    """Return whether the kind of a reward can serve as its name; note the problem if not."""
    if re.fullmatch(_NAME, name):
        return True
    rule = f"the kind {name!r} is no name for a column of results: give the reward a name"
    found.problems.append(Problem(path=part_of(path, "reward"), rule=rule))
    return False


def _resolve_name(found: Rewards, path: KeyPath, use: Use, reference: str) -> None:
    """Find the reward that a plain name refers to: one defined in the spec, or one that needs no parameters."""
    at = part_of(path, "reward")
    if reference in found.by_name:
        found.targets[path] = reference
        return
    if reference in registry.REWARD_KINDS:
        model = registry.REWARD_KINDS[reference]
        required = [key for key, info in model.model_fields.items() if info.is_required()]
        if not required:
            _add(found, path, use, reference, model().model_dump(mode="json"))
            return
        wanted = ", ".join(f"{key}: …" for key in required)
        rule = f"the reward {reference!r} needs parameters: write {{{reference}: {{{wanted}}}}}"
        found.problems.append(Problem(path=at, rule=rule, value=reference))
    elif registry.is_registered(registry.REWARDS, reference):
        _add(found, path, use, reference, {})
    else:
        choices = [*found.by_name, *registry.registered(registry.REWARDS)]
        hint = suggestion(reference, list(dict.fromkeys(choices)), "known")
        rule = f"unknown reward {reference!r}"
        found.problems.append(Problem(path=at, rule=rule, value=reference, hint=hint))


def _with_clip(reward: RewardConfig, pretrained: str | None) -> RewardConfig:
    """Return ``clip`` with the CLIP that belongs to the pretrained model, unless it names another."""
    if reward.kind != "clip" or reward.parameters["model"] is not None:
        return reward
    source = EMBEDDED if pretrained in SHIPPED else OPENAI_CLIP
    return reward.model_copy(update={"parameters": reward.parameters | {"model": source}})
