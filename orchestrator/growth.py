"""A spec under the name of a sweep that is there: it goes on with it, adds to it, or is refused as another.

The trials that are there are kept, with their ids and results; a spec that has them all may have more. What would give
their rows another meaning is refused, and shown key by key.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.plan import Plan, PlannedTrial
from orchestrator.spec.identity import meaning, trial_id
from orchestrator.spec.records.models import SweepSpec
from orchestrator.spec.records.searches import CERTIFIED, GRID, studied

_NEVER_ANOTHER = ("name", "storage", "trackers")
"""They say where the results are, and go, not what they are."""
_GROW = ("seeds", "methods", "search", "budget", "constraints")
"""Sections of which there may be more; shown last where something else differs too."""
_SHOWN = 6
_LONGEST = 60


def grown(there: Plan, spec_there: SweepSpec, here: Plan, spec: SweepSpec, *, place: str) -> Plan:
    """Return the plan of a sweep that goes on with another spec: what is there, and what the spec has beside it.

    Args:
        there: The plan of the sweep.
        spec_there: That it was made of.
        here: The plan of the other spec.
        spec: That one.
        place: Of the sweep, for messages.

    Raises:
        UsageError: Rows that are there would have another meaning, or the spec leaves trials out.
    """
    planned = {trial.trial_id for trial in here.trials}
    beside = [trial for trial in there.trials if trial.trial_id not in planned]
    left_out = [trial for trial in beside if not _searched(trial, spec_there, spec)]
    differences = _differences(meaning(there.base), meaning(here.base))
    if differences or left_out or not _covers(spec, spec_there):
        raise _another(place, _of_specs(spec_there, spec) or differences, left_out)
    known = {trial.trial_id: trial for trial in there.trials}
    return here.model_copy(
        update={
            "trials": (*(known.get(trial.trial_id, trial) for trial in here.trials), *beside),
            "searched": max(0, here.searched - len(beside)),
        }
    )


def with_resources(plan: Plan, spec: SweepSpec, *, place: str) -> Plan:
    """Return the plan of a sweep with the resources of a spec.

    Raises:
        UsageError: They have other workers: every worker of a trial adds to the batch of its optimiser steps.
    """
    asked = spec.resources
    elastic = asked.least_workers < asked.most_workers
    if (plan.base.workers, plan.base.elastic) != (asked.most_workers, elastic):
        written = plan.resources.model_dump(mode="json")["workers"]
        line = f"resources.workers: {_short(written)} there, {_short(asked.model_dump(mode='json')['workers'])} here"
        raise _another(place, [f"{line} (each adds training.batch_per_worker to an optimiser step)"], ())
    return plan.model_copy(update={"resources": asked})


def mended(plan: Plan, again: Collection[str], contents: Mapping[str, str]) -> Plan:
    """Return the plan in which some trials are run anew with other contents, by other ids; the rest stay as they are.

    Args:
        plan: Of the sweep.
        again: Ids of the trials that are run anew.
        contents: What names stand for now, by place.
    """

    def renewed(trial: PlannedTrial) -> PlannedTrial:
        if trial.trial_id not in again:
            return trial
        config = trial.config.model_copy(update={"contents": dict(contents)})
        return trial.model_copy(update={"trial_id": trial_id(config), "config": config})

    base = plan.base.model_copy(update={"contents": dict(contents)})
    return plan.model_copy(update={"base": base, "trials": tuple(map(renewed, plan.trials))})


def _searched(trial: PlannedTrial, spec_there: SweepSpec, spec: SweepSpec) -> bool:
    """Whether a search chose a trial that the other spec has too, be it with more trials or a wider range."""
    if trial.origin:
        return trial.origin in studied(spec)
    both = spec.search.kind == spec_there.search.kind != GRID
    return both and trial.config.method == "constrained" and trial.config.seed in spec.seeds


def _covers(spec: SweepSpec, spec_there: SweepSpec) -> bool:
    """Whether the ranges of a certified search are at least as wide as they were."""
    if not spec.search.kind == spec_there.search.kind == CERTIFIED:
        return True
    known = {constraint.label: constraint.values for constraint in spec.constraints}
    return all(
        min(known[constraint.label]) <= min(constraint.values)
        and max(known[constraint.label]) >= max(constraint.values)
        for constraint in spec_there.constraints
        if constraint.label in known
    )


def _of_specs(there: SweepSpec, here: SweepSpec) -> list[str]:
    """Return where two specs differ in what can make them two, what only grows last."""
    lines = _differences(_telling(there), _telling(here))
    return sorted(lines, key=lambda line: line.startswith(_GROW))


def _telling(spec: SweepSpec) -> dict[str, Any]:
    data = spec.model_dump(mode="json", exclude_none=True, exclude=set(_NEVER_ANOTHER))
    data["resources"] = {"workers": data["resources"]["workers"]}
    data["evaluation"].pop("batch", None)
    return data


def _another(place: str, lines: list[str], left_out: Collection[PlannedTrial]) -> UsageError:
    shown = lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
    if not lines:
        shown = [
            "the same spec was planned into other trials, by another version of cdsweep; resume finishes those"
        ]
    if left_out:
        named = next(iter(left_out)).trial_id
        shown.append(f"{len(left_out)} trials that are there would not be in it, such as {named}")
    return UsageError(
        f"{place} holds the results of another spec:\n"
        + "".join(f"  {line}\n" for line in shown)
        + "a spec that has all its trials adds to it (seeds, values of a grid, methods, a wider range); for this one "
        "choose another name with --name"
    )


def _differences(there: Any, here: Any, key: str = "") -> list[str]:
    """One line per leaf that differs, in the order of the keys."""
    if isinstance(there, dict) and isinstance(here, dict):
        lines: list[str] = []
        for part in dict.fromkeys((*there, *here)):
            inner = f"{key}.{part}" if key else str(part)
            if part not in there or part not in here:
                where = "there" if part in there else "here"
                lines.append(f"{inner}: only {where}, {_short(there.get(part, here.get(part)))}")
            else:
                lines += _differences(there[part], here[part], inner)
        return lines
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = enumerate(zip(there, here, strict=True))
        return [line for index, pair in pairs for line in _differences(*pair, f"{key}[{index}]")]
    same = there == here and isinstance(there, bool) == isinstance(here, bool)
    return [] if same else [f"{key}: {_short(there)} there, {_short(here)} here"]


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
