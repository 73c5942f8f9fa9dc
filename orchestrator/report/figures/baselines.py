"""Constrained training beside every weighted baseline, threshold combination by threshold combination."""

from collections.abc import Mapping

import numpy as np

from orchestrator.frontier.comparison import reach, settings_of, tightness
from orchestrator.frontier.summary import FrontierSummary
from orchestrator.report.figures.style import INK, RC, STYLES, entry, legend, saved, short
from orchestrator.report.page.lines import some
from orchestrator.report.units import Units, units_of

ROWS = 16
"""Threshold combinations at most; of more an even sample."""


def baselines_figure(summary: FrontierSummary) -> dict[str, bytes]:
    """Draw one row per threshold combination: the KL of the constrained setting and of every weighted one.

    All are means over seeds. A setting is filled where it meets the thresholds of the row: where the one-sided 95 %
    bounds of its violations are within tolerance. The best of these weights are marked, with their KL as a multiple of
    the constrained one.

    Returns:
        ``baselines.svg`` and ``baselines.png``; nothing without a constrained trial.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cells, config = some(list(summary.cells), ROWS), summary.config
    if not cells:
        return {}
    targets = config.targets
    rivals = summary.points.of_method("weighted")
    settings = settings_of(rivals, [rivals.weights[name] for name in rivals.rewards])
    reached = reach(settings, config, summary.baseline)
    color, (other, square) = STYLES["constrained"][0], STYLES["weighted"]
    units = units_of(config, summary.baseline)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(6.6, 1.2 + 0.34 * len(cells)), layout="constrained")
        axes = figure.subplots()
        for row, cell in enumerate(cells):
            axes.axhline(row, color="#EEEEEE", linewidth=0.8, zorder=0)
            asked = np.array([cell.thresholds.get(c.name, np.nan) for c in config.constraints])
            meeting = np.all(tightness(asked, config) <= reached, axis=1)
            for kl, meets in zip(settings.kl, meeting, strict=True):
                axes.plot(
                    [kl],
                    [row],
                    marker=square,
                    markersize=4,
                    markerfacecolor=other if meets else "white",
                    markeredgecolor=other,
                    markeredgewidth=0.8,
                    linestyle="none",
                    zorder=2,
                )
            axes.plot(
                [cell.kl],
                [row],
                marker="o",
                markersize=6.5,
                markerfacecolor=color if cell.met else "white",
                markeredgecolor="white" if cell.met else color,
                markeredgewidth=0.6 if cell.met else 1.2,
                linestyle="none",
                zorder=4,
            )
            if cell.rival_kl is not None:
                axes.plot(
                    [cell.rival_kl],
                    [row],
                    marker="o",
                    markersize=9,
                    markerfacecolor="none",
                    markeredgecolor=INK,
                    markeredgewidth=0.9,
                    linestyle="none",
                    zorder=3,
                )
            told = "none meets" if cell.rival_kl is None else f"× {short(cell.ratio)}" if cell.ratio else ""
            axes.annotate(
                told,
                xy=(1.0, row),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                annotation_clip=False,
            )
        axes.set_yticks(range(len(cells)), [_label(cell.thresholds, targets, units) for cell in cells])
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_xlim(left=0.0)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("KL to the pretrained model (nats)")
        legend(
            figure,
            [
                entry("constrained", marker="o", color=color),
                entry("weighted, meets the thresholds", marker=square, color=other),
                entry("weighted, does not", marker=square, color=other, markerfacecolor="white"),
                entry("best weights", marker="o", color=INK, markerfacecolor="none", markersize=8),
            ],
            columns=2,
        )
        return saved(figure, "baselines")


def _label(thresholds: Mapping[str, float], targets: Mapping[str, str], units: Units) -> str:
    return ", ".join(
        f"{name} {'≥' if name in targets else '≤'} {units.of_constraint(name).say(bound)}"
        for name, bound in thresholds.items()
    )
