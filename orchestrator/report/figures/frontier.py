"""The frontier as a figure: every sought reward against KL, with intervals, thresholds and the exact least KL."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.problems import LeastKL
from orchestrator.frontier.summary import FrontierSummary
from orchestrator.frontier.trials import Measured
from orchestrator.report.figures.style import (
    EXACT,
    FAINT,
    INK,
    RC,
    entry,
    legend,
    method_entries,
    panels,
    saved,
    show_in,
    style,
)
from orchestrator.report.page.lines import held_thresholds, thresholds_of
from orchestrator.report.units import Units, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]

_ERROR_BARS = 300
"""Trials above which error bars would only blur the figure."""


def frontier_figure(summary: FrontierSummary) -> dict[str, bytes]:
    """Draw reward against KL, one panel per sought reward.

    Every trial that succeeded is a marker, filled if feasible, with its 95 % intervals; thresholds are thin
    vertical guides. Where it is exact, lines show the least KL for each value of the panel's reward,
    one line per combination of the other thresholds.

    Args:
        summary: The sweep.

    Returns:
        Content by file name: ``frontier.svg`` and ``frontier.png``.
    """
    import matplotlib as mpl

    units = units_of(summary.config, summary.baseline)
    with mpl.rc_context(RC):
        figure, grid = panels(len(summary.sought), 4.1, 3.5, sharey=True)
        for axes, name in zip(grid, summary.sought, strict=True):
            _panel(axes, summary, name, units)
        for axes in grid[::3]:
            axes.set_ylabel("KL to the pretrained model (nats)")
        handles = method_entries({m.method: m.feasible < m.succeeded for m in summary.methods})
        handles.append(entry("pretrained", marker="*", color=INK, markersize=8))
        if summary.line is not None:
            handles.append(entry("least possible KL", linestyle="-", linewidth=0.9, color=EXACT))
        legend(figure, handles)
        return saved(figure, "frontier")


def _panel(axes: "Axes", summary: FrontierSummary, name: str, units: Units) -> None:
    points = summary.points
    reward, kl = points.rewards[name].mean, points.kl.mean
    mean = summary.baseline.rewards[name].mean
    for threshold in thresholds_of(summary, name):
        axes.axvline(threshold, color=FAINT, linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
    axes.plot([mean], [0.0], marker="*", color=INK, markersize=8, clip_on=False, zorder=5, linestyle="none")

    bars = len(points) <= _ERROR_BARS
    across, up = interval_lengths(points.rewards[name]), interval_lengths(points.kl)
    (low, high), (bottom, top) = _frame(reward, across, bars), _frame(kl, up, bars)
    span = max(high, mean) - min(low, mean) or 1.0
    low, high, top = min(low, mean) - 0.04 * span, max(high, mean) + 0.04 * span, 1.08 * max(top, 1e-3)
    axes.set_xlim(low, high)
    axes.set_ylim(min(1.08 * bottom, 0.0), top)
    across, up = np.minimum(across, high - low), np.minimum(up, 2.0 * top)  # past the frame
    unit = units.of_reward(name)
    show_in(axes.xaxis, unit, unit.title(name))
    if summary.line is not None:
        _exact_lines(axes, summary, name, summary.line, np.linspace(mean, high, 60), top, units)

    size = 4.5 if bars else 2.0
    for method in summary.methods:
        color, marker = style(method.method)
        for filled in (False, True):
            chosen = (points.methods == method.method) & (points.feasible == filled)
            if not chosen.any():
                continue
            axes.errorbar(
                reward[chosen],
                kl[chosen],
                xerr=across[:, chosen] if bars else None,
                yerr=up[:, chosen] if bars else None,
                linestyle="none",
                marker=marker,
                markersize=size,
                markerfacecolor=color if filled else "white",
                markeredgecolor="white" if filled else color,
                markeredgewidth=0.5 if filled else 1.0,
                ecolor=color,
                elinewidth=0.8,
                rasterized=not bars,
                zorder=3,
            )


def _exact_lines(
    axes: "Axes",
    summary: FrontierSummary,
    name: str,
    exact: LeastKL,
    values: FloatArray,
    top: float,
    units: Units,
) -> None:
    """Least KL against one reward, the thresholds on the others held, and labelled with them."""
    starts = []
    for held in held_thresholds(summary, name):
        kl = np.array([exact.least_kl({**held, name: float(value)}).kl for value in values])
        axes.plot(values, kl, color=EXACT, linewidth=0.9, zorder=1)
        if held and kl[0] <= top:
            starts.append(
                (
                    float(kl[0]),
                    ", ".join(
                        f"{other} ≥ {units.of_reward(other).say(bound)}" for other, bound in held.items()
                    ),
                )
            )
    _label_lines(axes, float(values[0]), starts, top)


def _label_lines(axes: "Axes", x: float, starts: Sequence[tuple[float, str]], top: float) -> None:
    """Write labels on the flat left part of the lines; lines too close for two labels share one.

    There the lines are farthest apart; on the right, where the panel's reward alone decides, they meet.
    """
    from matplotlib.patheffects import withStroke

    height = 0.045 * top  # of one line of text, in nats
    groups: list[tuple[float, str]] = []
    for y, label in sorted(starts):
        if groups and y - groups[-1][0] < height:
            groups[-1] = (y, f"{groups[-1][1]} / {label}")
        else:
            groups.append((y, label))
    for y, label in groups:
        axes.annotate(
            label,
            xy=(x, y),
            xytext=(2, 1.5),
            textcoords="offset points",
            fontsize=6.5,
            color=EXACT,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=2,
        )


def _frame(mean: FloatArray, bars: FloatArray, drawn: bool) -> tuple[float, float]:
    """Least and largest end of what is drawn; of nothing an empty range. Unbounded intervals run out of it."""
    ends = np.concatenate([mean, *((mean - bars[0], mean + bars[1]) if drawn else ())])
    ends = ends[np.isfinite(ends)]
    return float(ends.min(initial=np.inf)), float(ends.max(initial=-np.inf))


def interval_lengths(figure: Measured) -> FloatArray:
    """Lengths of the interval below and above, ``[2, n]``; 0 where unknown, infinite where unbounded."""
    below, above = figure.mean - figure.low, figure.high - figure.mean
    return np.maximum(np.nan_to_num(np.stack([below, above]), posinf=np.inf), 0.0)
