"""Lines of the frontier: exact, predicted from samples, and attained by so many seeds; all as plain numbers."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.comparison import attainment_surfaces, runs_of
from orchestrator.frontier.dominance import non_dominated
from orchestrator.frontier.summary import FrontierSummary
from orchestrator.frontier.trials import spread
from orchestrator.report.page.records import rounded

FloatArray = NDArray[np.float64]

LINES = 5
"""Per reward at most; more cannot be told apart."""
_VALUES = 33

Memory = dict[Any, Any]
"""What was computed for an earlier report of the same sweep."""


def thresholds_of(summary: FrontierSummary, name: str) -> FloatArray:
    """Thresholds of the constrained trials on one reward, ascending, ``[k]``."""
    mine = summary.points.of_method("constrained")
    columns = [
        mine.thresholds[constraint.name]
        for constraint in summary.config.constraints
        if constraint.kind == "reward" and constraint.target == name
    ]
    values = np.concatenate(columns) if columns else np.zeros(0)
    return np.unique(values[np.isfinite(values)])


def held_thresholds(summary: FrontierSummary, name: str, most: int = LINES) -> list[dict[str, float]]:
    """Combinations of thresholds on the other rewards, of which a line of least KL against one reward holds one."""
    others = [other for other in summary.sought if other != name and len(thresholds_of(summary, other))]
    combinations = product(*(thresholds_of(summary, other).tolist() for other in others))
    return [dict(zip(others, combination, strict=True)) for combination in some(list(combinations), most)]


def some(items: list[Any], most: int = LINES) -> list[Any]:
    """At most ``most`` items, evenly, the first and the last among them."""
    return [items[place] for place in spread(len(items), most)]


def reward_range(summary: FrontierSummary, name: str) -> tuple[float, float]:
    """Pretrained mean, and the largest value that a trial reached or was asked for."""
    reached = summary.points.rewards[name].mean
    values = np.concatenate([reached[np.isfinite(reached)], thresholds_of(summary, name)])
    mean = summary.baseline.rewards[name].mean
    return mean, float(values.max(initial=mean))


def exact_lines(summary: FrontierSummary, memory: Memory | None = None) -> list[dict[str, Any]]:
    """Least KL against each sought reward, one line per combination of the other thresholds; none where not exact."""
    memory = {} if memory is None else memory
    lines: list[dict[str, Any]] = []
    if (exact := summary.line) is None:
        return lines
    for name in summary.sought:
        low, high = reward_range(summary, name)
        for held in held_thresholds(summary, name):
            points = []
            for at in np.linspace(low, high, _VALUES).tolist():
                key = ("exact", name, at, *sorted(held.items()))
                least = memory.get(key)
                if least is None:
                    least = memory[key] = exact.least_kl({**held, name: at}).kl
                if np.isfinite(least):
                    points.append([rounded(at), rounded(least)])
            lines.append({"reward": name, "held": held, "points": points})
    return lines


def predicted_lines(preview: Mapping[str, Any] | None, targets: Mapping[str, str]) -> list[dict[str, Any]]:
    """What ``preview.json`` predicts, as lines of ``[reward, kl, low, high, effective samples]``.

    Args:
        preview: The stored document.
        targets: Reward of each constraint on one.
    """
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for point in (preview or {}).get("points", ()):
        asked = {targets[name]: bound for name, bound in point["thresholds"].items() if name in targets}
        if point.get("kl") is None or len(asked) < len(point["thresholds"]):
            continue  # beyond the samples, or under a KL budget, which is no threshold of a reward
        for name, bound in asked.items():
            held = {other: limit for other, limit in asked.items() if other != name}
            key = (name, *sorted(held.items()))
            line = lines.setdefault(key, {"reward": name, "held": held, "points": []})
            figures = (bound, point["kl"], point["kl_low"], point["kl_high"], point["ess"])
            line["points"].append([rounded(value) for value in figures])
    for line in lines.values():
        line["points"].sort()
    return list(lines.values())


def attained(summary: FrontierSummary) -> list[dict[str, Any]]:
    """KL and reward that one seed, half of them and all of them attain, by method; none with one seed."""
    found = []
    for method in summary.methods:
        mine = summary.points.of_method(method.method)
        count = len(np.unique(mine.seeds))
        if count < 2:
            continue
        for column, name in enumerate(summary.sought, start=1):
            points = mine.points[:, [0, column]]
            runs = [points[rows] for rows in runs_of(points, mine.seeds)]
            runs = [run[non_dominated(run)] for run in runs]
            found += [
                {
                    "method": method.method,
                    "reward": name,
                    "level": surface.level,
                    "of": surface.runs,
                    "points": sorted(
                        [rounded(-reward), rounded(cost)] for cost, reward in surface.points.tolist()
                    ),
                }
                for surface in attainment_surfaces(runs, sorted({1, (count + 1) // 2, count}))
            ]
    return found
