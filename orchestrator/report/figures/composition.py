"""The KLs of a composition sweep as a figure, SVG and PNG: how near every setting keeps each model."""

from typing import TYPE_CHECKING

import numpy as np

from orchestrator.frontier.composed import Setting, settings
from orchestrator.frontier.feasibility import TWO_SIDED
from orchestrator.frontier.summary import FrontierSummary
from orchestrator.report.figures.style import EXACT, INK, OTHERS, RC, STYLES, saved
from orchestrator.report.page.lines import some
from orchestrator.report.units import Units, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SETTINGS = 8
"""Groups of bars at most; more cannot be told apart."""
_HATCHES = ("", "///", "...", "xxx", "\\\\\\")
_LEVEL = 0.0005
"""Nats within which exact radii are one line."""


def composition_figure(summary: FrontierSummary) -> dict[str, bytes]:
    """Draw the KL to every model as bars, one group per model and one bar per setting.

    A setting is a constrained trial at its thresholds, or a weighting; bars are means over seeds. Lines show the
    exact least maximum that the constrained settings aim at.

    Args:
        summary: A sweep of compositions.

    Returns:
        Content by file name: ``frontier.svg`` and ``frontier.png``.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    composition = summary.config.model.composition
    assert composition is not None, "a sweep of compositions"
    names = [model.name for model in composition.models]
    found = some(list(settings(summary.points)), _SETTINGS)
    judged = [name for name in names if any(name in setting.retention for setting in found)]
    units = units_of(summary.config, summary.baseline)
    with mpl.rc_context(RC):
        panels = 2 if judged else 1
        figure = Figure(figsize=(panels * max(4.6, 1.2 + 1.1 * len(names)), 3.8), layout="constrained")
        axes, *others = figure.subplots(1, panels, squeeze=False)[0]
        width = 0.8 / max(len(found), 1)
        for index, setting in enumerate(found):
            shift = (index - (len(found) - 1) / 2) * width
            _bars(axes, setting, units, [setting.kls[name] for name in names], shift, 0.92 * width, index)
            for panel in others:
                kept = [setting.retention.get(name, np.nan) for name in judged]
                errors = [TWO_SIDED * setting.retention_error.get(name, np.nan) for name in judged]
                _bars(panel, setting, units, kept, shift, 0.92 * width, index, errors)
        for panel in others:
            panel.set_xticks(range(len(judged)), judged)
            panel.set_xlim(-0.6, len(judged) - 0.4)
            panel.axhline(0.0, color=INK, linewidth=0.6)
            panel.set_ylabel("share of the improvement that is kept")
        levels: list[float] = []
        for setting in found:
            least = setting.least
            if setting.method == "constrained" and least is not None:
                if all(abs(least - level) > _LEVEL for level in levels):
                    label = "exact least maximum" if not levels else None
                    axes.axhline(least, color=EXACT, linewidth=1.0, linestyle="--", label=label, zorder=3)
                levels.append(least)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(bottom=0.0)
        direction = "KL(p ‖ model)" if composition.direction == "reverse" else "KL(model ‖ p)"
        axes.set_ylabel(f"{direction} (nats)")
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
        return saved(figure, "frontier")


def _bars(
    axes: "Axes",
    setting: Setting,
    units: Units,
    heights: list[float],
    shift: float,
    width: float,
    index: int,
    errors: list[float] | None = None,
) -> None:
    """One bar per model; hatches tell settings of one method apart, also without colour."""
    color = STYLES.get(setting.method, OTHERS[0])[0]
    thresholds = ", ".join(
        f"{name} ≥ {units.of_constraint(name).say(bound)}" for name, bound in setting.keys.items()
    )
    constrained = f"constrained {thresholds}".rstrip()
    axes.bar(
        np.arange(len(heights)) + shift,
        heights,
        width,
        yerr=errors,
        label=constrained if setting.method == "constrained" else setting.label,
        color=color,
        edgecolor="white" if index else INK,
        linewidth=0.6,
        hatch=_HATCHES[index % len(_HATCHES)],
        error_kw={"ecolor": INK, "elinewidth": 0.8},
        zorder=2,
    )
