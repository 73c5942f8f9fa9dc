"""Constraints on groups of prompts: ``where`` names one by metadata, ``for_each`` all that a column has.

``for_each`` is written out when a spec is read: what follows knows constraints with ``where`` alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.spec.records.terms import Constraint, RewardConstraint, reward_label
from orchestrator.spec.text.problems import KeyPath, Problem, shown, suggestion
from trainers.config import PromptsConfig, QuantityName, Where

_LISTS = ("train", "evaluate")
_NAME: TypeAdapter[str] = TypeAdapter(QuantityName)


def grouped(
    constraints: Sequence[Constraint], prompts: PromptsConfig | None
) -> tuple[tuple[Constraint, ...], list[Problem]]:
    """Return constraints with ``for_each`` written out, and what is wrong with groups; paths begin with an index."""
    found: list[Constraint] = []
    problems: list[Problem] = []
    for place, constraint in enumerate(constraints):
        if not isinstance(constraint, RewardConstraint) or not (constraint.where or constraint.for_each):
            found.append(constraint)
            continue
        wrong = list(_column_problems(constraint, prompts))
        written = [constraint] if wrong or prompts is None else list(_written_out(constraint, prompts))
        for one in written:
            if not wrong and prompts is not None:
                wrong += [_as_asked(problem, constraint) for problem in _member_problems(one, prompts)]
            one._place = place  # noqa: SLF001 - where it stands in the file
        found += written
        problems += [replace(problem, path=(place, *problem.path)) for problem in wrong]
    return tuple(found), problems


def as_written(problems: Iterable[Problem], constraints: Sequence[Constraint]) -> list[Problem]:
    """Return problems with the places of constraints as they stand in the file."""

    def place(path: KeyPath) -> KeyPath:
        if len(path) < 2 or path[0] != "constraints" or not isinstance(path[1], int):
            return path
        stands = sum(_begins(constraints, index) for index in range(path[1] + 1)) - 1
        return ("constraints", stands, *path[2:])

    return [replace(problem, path=place(problem.path)) for problem in problems]


def _begins(constraints: Sequence[Constraint], index: int) -> bool:
    """Return whether a constraint is the first that is made of what is written."""
    here = getattr(constraints[index], "_place", None)
    return index == 0 or here is None or here != getattr(constraints[index - 1], "_place", None)


def _column_problems(constraint: RewardConstraint, prompts: PromptsConfig | None) -> Iterator[Problem]:
    """Yield what is wrong with the columns that name the group."""
    key = "for_each" if constraint.for_each else "where"
    if prompts is None:
        rule = "is about a group of prompts, and there are none: write prompts: {train: …, evaluate: …}"
        yield Problem(path=(key,), rule=rule, at_key=True)
        return
    columns = [name for name in prompts.train_metadata if name in prompts.evaluate_metadata]
    if constraint.for_each in (constraint.where or {}):
        rule = f"the column {constraint.for_each!r} is in for_each too, where it has every value in turn"
        yield Problem(path=("where", str(constraint.for_each)), rule=rule, at_key=True)
    for name, path in _named(constraint):
        if name not in columns:
            hint = suggestion(name, columns, "columns of both lists of prompts")
            rule = f"no column {name!r} in the metadata of prompts (.jsonl, .csv and .tsv files have it)"
            yield Problem(path=path, rule=rule, hint=hint, at_key=path[0] == "where")


def _as_asked(problem: Problem, constraint: RewardConstraint) -> Problem:
    """Return what is wrong with one group of a constraint, where the file asks for it."""
    return replace(problem, path=("for_each",)) if constraint.for_each else problem


def _named(constraint: RewardConstraint) -> Iterator[tuple[str, KeyPath]]:
    for name in constraint.where or {}:
        yield name, ("where", name)
    if constraint.for_each:
        yield constraint.for_each, ("for_each",)


def _written_out(constraint: RewardConstraint, prompts: PromptsConfig) -> Iterator[RewardConstraint]:
    """Yield the constraints that one stands for, in the order in which training prompts have the values."""
    if constraint.for_each is None:
        yield constraint
        return
    column = constraint.for_each
    values = [
        value for of in ("train", "evaluate") for value in prompts.column(of, column) if value is not None
    ]
    for value in dict.fromkeys(values):
        where: Where = {**(constraint.where or {}), column: value}
        update: dict[str, Any] = {"where": where, "for_each": None}
        if constraint.name is not None:
            update["name"] = f"{constraint.name}[{value}]"
        elif constraint.where:
            update["name"] = f"{reward_label(constraint.reward, None)}[{', '.join(where.values())}]"
        yield constraint.model_copy(update=update)


def _member_problems(constraint: RewardConstraint, prompts: PromptsConfig) -> list[Problem]:
    """Return what is wrong with one group."""
    assert constraint.where is not None, "a group"
    path: KeyPath = ("where",)
    said = " and ".join(f"{name} = {shown(value)}" for name, value in constraint.where.items())
    try:
        _NAME.validate_python(constraint.label)
    except ValidationError:
        rule = (
            f"results would call it {constraint.label!r}: in brackets stand 1 to 100 characters without brackets and "
            "'='; give it a name, or the prompts other values"
        )
        return [Problem(path=path, rule=rule)]
    train, evaluate = (
        prompts.members("train", constraint.where),
        prompts.members("evaluate", constraint.where),
    )
    for of, members in zip(_LISTS, (train, evaluate), strict=True):
        if not members:
            return [
                Problem(
                    path=path, rule=f"no prompt of prompts.{of} has {said}{_known(constraint, prompts, of)}"
                )
            ]
    both = (train ^ evaluate) & set(prompts.train) & set(prompts.evaluate)
    if both:
        rule = (
            f"the prompt {shown(min(both))} is in both lists of prompts, and has {said} in one of them alone"
        )
        return [Problem(path=path, rule=rule)]
    return []


def _known(constraint: RewardConstraint, prompts: PromptsConfig, of: Any) -> str:
    """Return the values that a list has in the first column that lacks the one that is asked for."""
    for name, value in (constraint.where or {}).items():
        values = list(dict.fromkeys(known for known in prompts.column(of, name) if known is not None))
        if value not in values:
            return suggestion(value, values[:20], f"values of {name}")
    return "; each value is there, but not together"
