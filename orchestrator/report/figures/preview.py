"""What a preview predicts, as a figure: least KL against every threshold, with intervals and verdicts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.frontier.sampled import BEYOND, HARD, REACHABLE
from orchestrator.report.figures.style import INK, RC, STYLES, from_zero, saved, show_in
from orchestrator.report.units import Written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = {REACHABLE: ("o", STYLES["constrained"][0]), HARD: ("D", "#E69F00"), BEYOND: ("x", "#D55E00")}
"""Marker and colour by verdict; told apart without colour."""
_LINES = 5
"""Combinations of the other thresholds that are joined by lines in one panel; more only cross."""


def preview_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the document of ``cdsweep preview``: one panel per threshold that varies, the others in its title.

    Points that differ in that threshold alone are joined. What lies beyond the samples has no prediction: it stands
    at the KL that their interval proves at least.

    Returns:
        Content by file name: ``preview.svg`` and ``preview.png``.

    Raises:
        ValueError: There are no points.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    points = document["points"]
    if not points:
        raise ValueError("a preview without thresholds has no figure")
    values = {name: {point["thresholds"][name] for point in points} for name in points[0]["thresholds"]}
    names = [name for name, found in values.items() if len(found) > 1] or list(values)
    fixed = ", ".join(
        f"{name} ≥ {_unit(document, name).say(min(found))}"
        for name, found in values.items()
        if name not in names
    )
    with mpl.rc_context(RC):
        figure = Figure(figsize=(3.6 * len(names) + 0.6, 3.4), layout="constrained")
        for axes, name in zip(
            figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True
        ):
            _panel(axes, points, name)
            unit = _unit(document, name)
            show_in(axes.xaxis, unit, unit.title(f"threshold of {name}"))
        figure.axes[0].set_ylabel("predicted least KL (nats)")
        if fixed:
            figure.axes[0].set_title(fixed, loc="left", fontsize=8, color=INK)
        figure.legend(
            handles=[
                Line2D([], [], linestyle="none", marker=marker, color=color, markersize=5, label=verdict)
                for verdict, (marker, color) in MARKS.items()
                if any(point["verdict"] == verdict for point in points)
            ],
            loc="outside upper center",
            ncols=3,
            frameon=False,
        )
        return saved(figure, "preview")


def _panel(axes: "Axes", points: list[Mapping[str, Any]], name: str) -> None:
    others: dict[tuple[float, ...], list[Mapping[str, Any]]] = {}
    for point in points:
        key = tuple(value for other, value in point["thresholds"].items() if other != name)
        others.setdefault(key, []).append(point)
    for line in others.values():
        known = sorted((point["thresholds"][name], point["kl"]) for point in line if point["kl"] is not None)
        if len(known) > 1 and len(others) <= _LINES:
            axes.plot(*zip(*known, strict=True), color=INK, linewidth=0.7, alpha=0.6, zorder=1)
    for point in points:
        marker, color = MARKS[point["verdict"]]
        low, high = point["kl_low"], point["kl_high"]
        at = low if point["kl"] is None else point["kl"]
        if at is None:
            continue
        bar = None if point["kl"] is None or high is None else [[max(at - low, 0.0)], [max(high - at, 0.0)]]
        axes.errorbar(
            point["thresholds"][name],
            at,
            yerr=bar,
            marker=marker,
            color=color,
            markersize=5,
            elinewidth=0.9,
            zorder=2,
        )
    from_zero(axes)


def _unit(document: Mapping[str, Any], name: str) -> Written:
    return Written(**document.get("units", {}).get(name, {}))
