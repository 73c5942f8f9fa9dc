"""The least KL as lines and bands: exact, predicted from samples, and bounded by the finished trials."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.bounds import FrontierPoint, OutOfReachError, pick
from orchestrator.report.figures.rewards import thresholds_on
from orchestrator.report.figures.style import (
    BOUND,
    EXACT,
    FAINT,
    INK,
    PREDICTED,
    RC,
    STYLES,
    entry,
    from_zero,
    legend,
    marked,
    panels,
    saved,
    show_in,
)
from orchestrator.report.units import units_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]

CONNECTED = 3
"""Predicted points from which on they make a line: the chord of two says nothing of a convex curve."""
_VALUES = 41
_SAME = 0.005
"""σ within which two thresholds are one."""
_LOOKS = {"predicted": (PREDICTED, "--"), "exact": (EXACT, "-")}
_MARKS = {"predicted": "D", "exact": None}
_TOLD = {"predicted": "predicted from samples", "exact": "exact"}


def bounds_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the least KL against each sought reward, the other thresholds held at those of the trial to take.

    The band lies between the largest tangent of the finished trials and their cheapest mixture. The exact line, and
    the prediction, are those at the nearest thresholds for which there are any, which the panel's title names.

    Returns:
        ``bounds.svg`` and ``bounds.png``; nothing for a composition or without trials.
    """
    import matplotlib as mpl

    source = document["pick"]
    names = [reward["name"] for reward in document["rewards"] if reward["sought"]]
    if source is None or len(source["ids"]) < 2 or not names:
        return {}
    points = _points(source)
    scales = {reward["name"]: reward["std"] or 1.0 for reward in document["rewards"]}
    units = units_in(document["constraints"])
    with mpl.rc_context(RC):
        figure, grid = panels(len(names))
        drawn = set()
        for axes, name in zip(grid, names, strict=True):
            held = {other: bound for other, bound in document["words"]["thresholds"].items() if other != name}
            values, low, high = _bands(points, source["rewards"], name, held)
            reached = np.isfinite(high)
            axes.fill_between(
                values[reached], low[reached], high[reached], color=BOUND, alpha=0.15, linewidth=0
            )
            axes.plot(values, low, color=BOUND, linewidth=1.0)
            axes.plot(values[reached], high[reached], color=BOUND, linewidth=1.0)
            for kind in ("predicted", "exact"):
                line = _nearest([each for each in document[kind] if each["reward"] == name], held, scales)
                if line is not None:
                    _line(axes, line, kind)
                    drawn.add(kind)
            for threshold in thresholds_on(document, name):
                axes.axvline(threshold, color=FAINT, linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
            for trial in _there(document, held, scales):
                at, feasible = trial["rewards"][name][0], bool(trial.get("feasible"))
                marked(axes, [at], [trial["kl"][0]], "constrained", feasible=feasible)
            unit = units.of_reward(name)
            show_in(axes.xaxis, unit, unit.title(f"threshold of {name}"))
            told = ", ".join(
                f"{other} ≥ {units.of_reward(other).say(bound)}" for other, bound in held.items()
            )
            axes.set_title(told, fontsize=8, color=INK)
            from_zero(axes)
        grid[0].set_ylabel("least KL to the pretrained model (nats)")
        handles = [entry("between tangents and mixtures of trials", linestyle="-", color=BOUND)]
        handles += [
            entry(
                _TOLD[kind],
                linestyle=_LOOKS[kind][1],
                color=_LOOKS[kind][0],
                marker=_MARKS[kind],
                markersize=3,
            )
            for kind in _LOOKS
            if kind in drawn
        ]
        handles.append(entry("constrained trial there", marker="o", color=STYLES["constrained"][0]))
        legend(figure, handles, columns=4)
        return saved(figure, "bounds")


def _points(source: Mapping[str, Any]) -> list[FrontierPoint]:
    """What can be picked, as points of the frontier."""
    columns = (source[name] for name in ("rewards_measured", "reaches", "kl", "multipliers"))
    return [
        FrontierPoint(
            rewards=np.array(rewards),
            kl=kl,
            multipliers=None if prices is None else np.array(prices),
            met=np.array(reaches),
        )
        for rewards, reaches, kl, prices in zip(*columns, strict=True)
    ]


def _line(axes: "Axes", line: Mapping[str, Any], kind: str) -> None:
    color, look = _LOOKS[kind]
    found = np.array([point[:2] for point in line["points"]], dtype=np.float64)
    connected = len(found) >= CONNECTED
    if connected:
        axes.plot(found[:, 0], found[:, 1], color=color, linewidth=1.1, linestyle=look, zorder=2)
    if kind == "predicted":
        axes.plot(found[:, 0], found[:, 1], color=color, marker="D", markersize=3, linestyle="none")
        low, high = np.array([point[2:4] for point in line["points"]], dtype=np.float64).T
        if connected:
            axes.fill_between(found[:, 0], low, high, color=color, alpha=0.2, linewidth=0)
        else:
            axes.vlines(found[:, 0], low, high, color=color, linewidth=0.9)


def _bands(
    points: Sequence[FrontierPoint], rewards: Sequence[str], name: str, held: Mapping[str, float]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Thresholds of one reward, and both bounds there ``[v]``, nats; the upper one infinite out of reach."""
    place = list(rewards).index(name)
    reached = [point.reaches(0.0)[place] for point in points]
    values = np.linspace(points[0].rewards[place], max(reached), _VALUES)
    low, high = np.full(_VALUES, np.nan), np.full(_VALUES, np.inf)
    for at, value in enumerate(values.tolist()):
        asked = {**held, name: value}
        try:
            found = pick(points, np.array([asked.get(each, -np.inf) for each in rewards]))
        except OutOfReachError:
            continue
        low[at], high[at] = found.lower_bound, found.kl
    return values, low, high


def _nearest(
    lines: Sequence[Mapping[str, Any]], held: Mapping[str, float], scales: Mapping[str, float]
) -> Mapping[str, Any] | None:
    """The line whose other thresholds are nearest to those that are held, in σ."""
    usable = [line for line in lines if line["points"]]

    def away(line: Mapping[str, Any]) -> float:
        distances = [
            abs(line["held"].get(name, bound) - bound) / scales[name] for name, bound in held.items()
        ]
        return float(sum(distances))

    return min(usable, key=away, default=None)


def _there(
    document: Mapping[str, Any], held: Mapping[str, float], scales: Mapping[str, float]
) -> Iterator[Mapping[str, Any]]:
    """Constrained trials with the thresholds that are held."""
    names = {c["target"]: c["name"] for c in document["constraints"] if c["kind"] == "reward"}
    for trial in document["trials"]:
        if trial["method"] != "constrained" or not trial.get("kl"):
            continue
        asked = {target: trial.get("thresholds", {}).get(name) for target, name in names.items()}
        if all(
            asked.get(name) is not None and abs(asked[name] - bound) < _SAME * scales[name]
            for name, bound in held.items()
        ):
            yield trial
