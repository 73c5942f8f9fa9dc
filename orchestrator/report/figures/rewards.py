"""Every pair of rewards against each other, and what each pair costs."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from orchestrator.frontier.summary import FrontierSummary
from orchestrator.frontier.trials import spread
from orchestrator.report.figures.frontier import interval_lengths
from orchestrator.report.figures.style import (
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
from orchestrator.report.page.lines import thresholds_of
from orchestrator.report.units import units_of

PAIRS = 6
"""Panels at most."""
MOST = 2000
"""Trials at most; more only cover each other."""


def rewards_figure(
    summary: FrontierSummary, pretrained: Mapping[str, tuple[float, float]]
) -> dict[str, bytes]:
    """Draw one panel per pair of sought rewards, with intervals, thresholds, and the KL as colour.

    Args:
        summary: The sweep.
        pretrained: Mean and standard error of the pretrained model's rewards on the held-out prompts.

    Returns:
        ``rewards.svg`` and ``rewards.png``; nothing with fewer than two sought rewards or without trials.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    pairs = list(combinations(summary.sought, 2))[:PAIRS]
    points = summary.points.take(spread(len(summary.points), MOST))
    if not pairs or not len(points):
        return {}
    colors = ScalarMappable(norm=Normalize(0.0, points.kl.mean.max() or 1.0), cmap="cividis_r")
    units = units_of(summary.config, summary.baseline)
    with mpl.rc_context(RC):
        figure, grid = panels(len(pairs))
        for axes, (across, up) in zip(grid, pairs, strict=True):
            x, y = points.rewards[across], points.rewards[up]
            wide, high = interval_lengths(x), interval_lengths(y)
            for row in np.flatnonzero(np.isfinite(x.mean) & np.isfinite(y.mean)):
                color, filled = colors.to_rgba(points.kl.mean[row]), points.feasible[row]
                axes.errorbar(
                    x.mean[row],
                    y.mean[row],
                    xerr=wide[:, [row]],
                    yerr=high[:, [row]],
                    marker=style(points.methods[row])[1],
                    markersize=5,
                    markerfacecolor=color if filled else "white",
                    markeredgecolor=INK if filled else color,
                    markeredgewidth=0.4 if filled else 1.4,
                    ecolor=FAINT,
                    elinewidth=0.7,
                    linestyle="none",
                    zorder=3,
                )
            for name, draw in ((across, axes.axvline), (up, axes.axhline)):
                for threshold in thresholds_of(summary, name):
                    draw(threshold, color=FAINT, linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
            start = [[pretrained[name][0]] for name in (across, up)]
            axes.plot(*start, marker="*", color=INK, markersize=8, linestyle="none", zorder=5)
            for name, axis in ((across, axes.xaxis), (up, axes.yaxis)):
                unit = units.of_reward(name)
                show_in(axis, unit, unit.title(name))
        figure.colorbar(colors, ax=grid, label="KL to the pretrained model (nats)", shrink=0.8)
        handles = method_entries({m.method: m.feasible < m.succeeded for m in summary.methods})
        for handle in handles:
            handle.set_color(INK)
        handles.append(entry("pretrained", marker="*", color=INK, markersize=8))
        legend(figure, handles, columns=6 if len(pairs) > 1 else 2)
        return saved(figure, "rewards")
