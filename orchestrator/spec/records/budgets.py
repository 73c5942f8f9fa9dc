"""What a sweep may spend, and the rules about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, PositiveFloat, WithJsonSchema, model_validator

from orchestrator.spec.text.problems import Problem
from trainers.config import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import SweepSpec

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_PART = r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)"
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d)", re.ASCII)
_WHOLE = re.compile(rf"\s*(?:{_PART}\s*)+", re.ASCII)


def seconds(written: Any) -> float:
    """Return a duration in seconds: ``2h``, ``1h30m``, ``45 min``, ``90s``, ``1.5d``, ``1:30:00``, or seconds.

    Raises:
        ValueError: It is none, or not above 0.
    """
    found = written
    if isinstance(written, str):
        parts = re.findall(_PART, written, re.ASCII) if _WHOLE.fullmatch(written) else []
        if shown := _CLOCK.fullmatch(written):
            parts = list(zip(shown.groups(), "hms", strict=True))
        found = sum(float(count) * _SECONDS[unit] for count, unit in parts)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
        raise ValueError("must be a duration above 0: 90s, 45m, 2h, 1h30m, 1d, or seconds as a number")
    return float(found)


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": rf"^\s*({_PART}\s*)+$|^\d+:[0-5]\d:[0-5]\d$"},
            ]
        }
    ),
]
"""Seconds; written as ``seconds`` reads it."""


_NEEDS = "needs gpu_hours, cost or wall, or there is nothing to keep to"


class BudgetSpec(Frozen):
    """What the searches of a sweep may spend; they ask for nothing more that would not end within it."""

    gpu_hours: PositiveFloat | None = None
    """Wall time of all trials, multiplied by the GPUs that each holds."""
    cost: PositiveFloat | None = None
    """The same at ``resources.price_per_gpu_hour``, in its currency. With both the smaller one holds."""
    wall: Duration | None = None
    """Time for which the sweep is at work, all its runs together: ``90m``, ``2h``, ``1h30m``, or seconds. What still
    runs when it is over is stopped, and goes on where there is more."""

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(_NEEDS)
        return self


def budgeted_hours(spec: SweepSpec) -> float | None:
    """Return the GPU-hours that the searches of a sweep may spend; None where these are not limited."""
    if spec.budget is None:
        return None
    hours = [] if spec.budget.gpu_hours is None else [spec.budget.gpu_hours]
    if spec.budget.cost is not None and spec.resources.price_per_gpu_hour:
        hours.append(spec.budget.cost / spec.resources.price_per_gpu_hour)
    return min(hours, default=None)


def budgeted_wall(spec: SweepSpec) -> float | None:
    """Return the seconds for which a sweep may be at work; None where these are not limited."""
    return None if spec.budget is None else spec.budget.wall


def lasting(duration: float) -> str:
    """Return seconds in words: ``45 s``, ``12.5 min``, ``2 h``."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if duration >= size:
            return f"{duration / size:.3g} {unit}"
    return f"{duration:.3g} s"


def limits(spec: SweepSpec) -> Iterator[str]:
    """Say in words what a sweep may spend."""
    if (hours := budgeted_hours(spec)) is not None:
        yield f"{hours:g} GPU-hours"
    if (wall := budgeted_wall(spec)) is not None:
        yield lasting(wall)


def budget_problems(spec: SweepSpec, *, budgeted: str) -> Iterator[Problem]:
    """Yield what is wrong with a budget; the search ``budgeted`` alone keeps to one."""
    if spec.budget is None:
        return
    written = {
        key: value
        for key in ("gpu_hours", "cost", "wall")
        if (value := getattr(spec.budget, key)) is not None
    }
    if not written:
        yield Problem(path=("budget",), rule=_NEEDS)
        return
    first = next(iter(written))
    if spec.search.kind != budgeted:
        rule = f"goes with search: {{kind: {budgeted}}}; the search {spec.search.kind!r} runs what is planned"
        yield Problem(path=("budget", first), rule=rule, value=written[first])
    elif first != "wall" and not spec.resources.gpus_per_worker:
        rule = (
            "counts hours of GPUs, and resources.gpus_per_worker is 0: budget: {wall: 2h} counts time, "
            "search.max_trials trials"
        )
        yield Problem(path=("budget", first), rule=rule, value=written[first])
    elif "cost" in written and not spec.resources.price_per_gpu_hour:
        rule = "is counted at a price: write resources.price_per_gpu_hour, or budget: {gpu_hours: …}"
        yield Problem(path=("budget", "cost"), rule=rule, value=written["cost"])
