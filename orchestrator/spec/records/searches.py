"""Searches in a spec, whose trials are chosen while others finish, and the rules about them.

``certified`` chooses the thresholds of the constrained method inside ranges, or without it those that the adapter of
the method frontier is asked for; a weighted method may have its weights chosen by Optuna. No plan holds such trials
beforehand, only how many there can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, PositiveFloat, PositiveInt, model_validator

from orchestrator.spec.records import registry
from orchestrator.spec.records.budgets import budget_problems, limits
from orchestrator.spec.records.terms import (
    UNIT_MARKS,
    KLConstraint,
    KLObjective,
    RewardConstraint,
    RewardObjective,
    ThresholdGrid,
    ThresholdRange,
)
from orchestrator.spec.text.problems import KeyPath, Problem, dotted, raise_problems
from trainers.config import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import SweepSpec

CERTIFIED = "certified"
GRID = "grid"
"""No search at all: every combination is planned beforehand."""
MAX_CONSTRAINTS = 6
"""Of a certified search: its bounds are programs over a box of as many dimensions."""

_FEW_CONSTRAINTS = 2
_TRIALS_OF_FEW, _TRIALS_OF_MANY = 16, 25
_TRIALS_OF_BUDGET = 100
"""Without ``max_trials``, where hours or time are what counts."""
_ROUNDS = 3


def _searchable(kind: str) -> str:
    registry.require(registry.SEARCHES, kind, ())
    return kind


class SearchSpec(Frozen):
    """How the trials of the constrained method are chosen, or what the adapter of the method frontier is asked for."""

    kind: Annotated[str, AfterValidator(_searchable)] = GRID
    """Registered search: ``grid`` runs every combination, ``certified`` chooses thresholds inside ranges."""
    tolerance: PositiveFloat | None = None
    """Of ``certified``: it stops when no threshold of the ranges can cost more than this too much, nats."""
    max_trials: PositiveInt | None = None
    """Of ``certified``: it stops after so many trials of a seed, one that is continued counted again; by default 16,
    with more than two constraints 25, with a budget 100. Of the method frontier without constrained: answers of its
    adapter, those of its ``points`` counted."""
    rounds: PositiveInt | None = None
    """Of ``certified``: a trial is trained so often at most, each time for ``training.steps`` from where it was, where
    that is expected to narrow the gap more than a trial elsewhere; 1 never continues one; by default 3."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == CERTIFIED:
            if self.tolerance is None:
                rule = "the key 'tolerance' is required by search certified: the excess KL to stop at, nats"
                raise_problems([Problem(path=("tolerance",), rule=rule)])
            return self
        settings = {"tolerance": self.tolerance, "max_trials": self.max_trials, "rounds": self.rounds}
        rule = f"goes with kind: {CERTIFIED}, the search {self.kind!r} has none"
        problems = [
            Problem(path=(name,), rule=rule, value=value, at_key=True)
            for name, value in settings.items()
            if value is not None
        ]
        if problems:
            raise_problems(problems)
        return self


class WeightSearchSpec(Frozen):
    """Weights chosen by Optuna: every reward is an objective and so is the KL, thresholds are constraints."""

    sampler: Literal["tpe", "nsga2", "gp", "random"] = "tpe"
    """Parzen estimators, a genetic algorithm, Gaussian processes, or log-uniform draws."""
    trials: PositiveInt
    """Trials of each seed, which has a study of its own."""
    low: PositiveFloat = 0.01
    """Least weight of a reward, nats per σ."""
    high: PositiveFloat = 10.0
    """Greatest weight of a reward, nats per σ."""

    def study(self, seed: int) -> str:
        """What the study of a seed is called; it goes on with more trials."""
        return f"{self.sampler} {self.low:g} to {self.high:g}, seed {seed}"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            at, rule = "high", f"must be greater than low, which is {self.low:g}"
            if "high" not in self.model_fields_set:
                at, rule = "low", f"must be less than high, which is {self.high:g}"
            raise_problems([Problem(path=(at,), rule=rule, value=getattr(self, at))])
        return self


# How many trials -------------------------------------------------------------------------------------


def max_trials(spec: SweepSpec) -> int:
    """Return how many trials of each seed a certified search may run."""
    if spec.search.max_trials is not None:
        return spec.search.max_trials
    if spec.budget is not None:
        return _TRIALS_OF_BUDGET
    return _TRIALS_OF_FEW if len(spec.constraints) <= _FEW_CONSTRAINTS else _TRIALS_OF_MANY


def most_rounds(spec: SweepSpec) -> int:
    """Return how often a certified search may have a trial trained."""
    return _ROUNDS if spec.search.rounds is None else spec.search.rounds


def asks_box(spec: SweepSpec) -> bool:
    """Whether a certified search asks the adapter for a box of thresholds in place of trials."""
    return spec.search.kind == CERTIFIED and "constrained" not in spec.methods and bool(spec.frontiers)


def continues(spec: SweepSpec) -> bool:
    """Whether a trial that has finished may be trained further: by a search, or in further rounds for its box."""
    searched = spec.search.kind == CERTIFIED and not asks_box(spec) and most_rounds(spec) > 1
    return searched or _box_rounds(spec) > 0


def _box_rounds(spec: SweepSpec) -> int:
    """Return how many further rounds the trials of a seed for a box of thresholds are trained."""
    return sum(settings.rounds - 1 for _, settings in spec.frontiers)


def searched_count(spec: SweepSpec) -> int:
    """Return how many trials the searches can add to the plan, over all seeds; a further round counts as one."""
    total = sum(settings.search.trials for _, settings in spec.weightings if settings.search is not None)
    total += _box_rounds(spec)
    if spec.search.kind == CERTIFIED:
        total += max_trials(spec) * spec.methods.count("constrained")
    return total * len(spec.seeds)


def studied(spec: SweepSpec) -> frozenset[str]:
    """Return the names of all studies of weights, by which their trials are known."""
    return frozenset(
        settings.search.study(seed)
        for _, settings in spec.weightings
        if settings.search is not None
        for seed in spec.seeds
    )


def described(spec: SweepSpec) -> Iterator[str]:
    """Say in words what each search chooses, and how often; seeds multiply."""
    weightings, boxes = dict(spec.weightings), dict(spec.frontiers)
    for index, method in enumerate(spec.methods):
        if index in boxes and asks_box(spec):
            yield f"frontier: up to {_searched(spec, 'answers of one adapter')}"
        if index in boxes and boxes[index].rounds > 1:
            yield (
                f"frontier: up to {boxes[index].rounds} rounds per seed, the further ones where answers are farthest "
                "above the least KL"
            )
        if isinstance(method, str):
            if spec.search.kind == CERTIFIED:
                yield f"{method}: up to {_searched(spec, 'trials')}"
        elif index in weightings and (search := weightings[index].search) is not None:
            yield (
                f"weighted: {search.trials} trials per seed, {search.sampler} chooses weights of {search.low:g} to "
                f"{search.high:g} nats per σ"
            )


def _searched(spec: SweepSpec, what: str) -> str:
    """How many of what a certified search has at most, and where."""
    places = ", ".join(_place(constraint) for _, constraint in _rewards(spec))
    budget = "".join(f" and {limit} in all" for limit in limits(spec))
    return f"{max_trials(spec)} {what} per seed{budget}, {CERTIFIED} search chooses {places}"


def _place(constraint: RewardConstraint) -> str:
    """Where a certified search may put a threshold."""
    mark = UNIT_MARKS[constraint.unit]
    ends = [value if isinstance(value, str) else f"{value:g}{mark}" for value in constraint.written]
    return f"{constraint.label} {'from ' if len(ends) > 1 else 'at '}{' to '.join(ends)}"


# Rules -----------------------------------------------------------------------------------------------


def search_problems(spec: SweepSpec) -> list[Problem]:
    """Return what is wrong with the searches of a spec."""
    problems = _certified_problems(spec) if spec.search.kind == CERTIFIED else _range_problems(spec)
    return [*problems, *budget_problems(spec, budgeted=CERTIFIED), *_weight_search_problems(spec)]


def _range_problems(spec: SweepSpec) -> Iterator[Problem]:
    if spec.frontiers and "constrained" not in spec.methods:
        return  # one trial has all of the range
    for path, constraint in _rewards(spec):
        if isinstance(constraint.at_least, ThresholdRange):
            rule = (
                f"a range is searched by search: {{kind: {CERTIFIED}, tolerance: NATS}}; "
                f"the search {spec.search.kind!r} takes a number or {{grid: […]}}"
            )
            yield Problem(path=(*path, "at_least"), rule=rule)


def _certified_problems(spec: SweepSpec) -> Iterator[Problem]:
    at_kind: KeyPath = ("search", "kind")
    if spec.models is not None:
        rule = "searches thresholds on rewards of one model: it does not go with a composition"
        yield Problem(path=at_kind, rule=rule, value=CERTIFIED)
        return
    if not isinstance(spec.objective, KLObjective):
        key = "reward" if isinstance(spec.objective, RewardObjective) else "minmax_kl"
        rule = "search certified bounds the least KL: the objective must be {kl: pretrained}"
        yield Problem(path=("objective", key), rule=rule)
    for index, constraint in enumerate(spec.constraints):
        if isinstance(constraint, KLConstraint):
            rule = "a KL budget does not go with search certified, whose objective is the KL"
            yield Problem(path=("constraints", index, "kl"), rule=rule, value=constraint.kl)
    rewards = list(_rewards(spec))
    grids = [path for path, constraint in rewards if isinstance(constraint.at_least, ThresholdGrid)]
    for path in grids:
        rule = "a grid does not go with search certified: write a number or {range: [low, high]}"
        yield Problem(path=(*path, "at_least"), rule=rule)
    ranges = [path for path, constraint in rewards if isinstance(constraint.at_least, ThresholdRange)]
    if not ranges and not grids:
        rule = "has nothing to choose: write at_least: {range: [low, high]} in at least one constraint"
        yield Problem(path=at_kind, rule=rule, value=CERTIFIED)
    if len(rewards) > MAX_CONSTRAINTS:
        rule = f"search certified handles at most {MAX_CONSTRAINTS} rewards, got {len(rewards)}"
        yield Problem(path=("constraints",), rule=rule)
    if asks_box(spec):
        yield from _asked_problems(spec)
    elif "constrained" not in spec.methods:
        rule = (
            "chooses thresholds of the method constrained, or what the adapter of the method frontier is asked for, "
            "and neither is in the list of methods"
        )
        yield Problem(path=at_kind, rule=rule, value=CERTIFIED)


def _asked_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Yield what does not go with one adapter that answers in place of trials."""
    (first, settings), *others = spec.frontiers
    for index, _ in others:
        rule = (
            f"is a second adapter, and search certified asks one: that of methods.{first}, or trials of the method "
            "constrained"
        )
        yield Problem(path=("methods", index, "frontier"), rule=rule, at_key=True)
    if (rounds := spec.search.rounds) is not None:
        rule = (
            f"is of trials of the method constrained: an adapter for the box is trained as often as methods.{first}."
            "frontier.rounds says, at most"
        )
        yield Problem(path=("search", "rounds"), rule=rule, value=rounds)
    if (most := max_trials(spec)) < settings.points:
        rule = (
            f"counts the {settings.points} answers of methods.{first}.frontier.points too: write at least as many, or "
            "fewer points"
        )
        yield Problem(path=("search", "max_trials"), rule=rule, value=most)
    if spec.resources.shard:
        rule = (
            "splits a model over workers, and each answer that search certified asks of the method frontier is "
            "measured by one: leave it out"
        )
        yield Problem(path=("resources", "shard"), rule=rule, value=True)


def _weight_search_problems(spec: SweepSpec) -> Iterator[Problem]:
    seen: dict[tuple[str, float, float], KeyPath] = {}
    for index, settings in spec.weightings:
        if (search := settings.search) is None:
            continue
        path: KeyPath = ("methods", index, "weighted", "search")
        key = (search.sampler, search.low, search.high)
        if spec.models is not None:
            rule = "chooses weights of rewards: it does not go with a composition"
            yield Problem(path=path, rule=rule)
        elif key in seen:
            rule = f"is the search at {dotted(seen[key])} again: another has another sampler or other bounds"
            yield Problem(path=path, rule=rule)
        seen.setdefault(key, path)


def _rewards(spec: SweepSpec) -> Iterator[tuple[KeyPath, RewardConstraint]]:
    for index, constraint in enumerate(spec.constraints):
        if isinstance(constraint, RewardConstraint):
            yield ("constraints", index), constraint
