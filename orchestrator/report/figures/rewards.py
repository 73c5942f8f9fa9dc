"""Every pair of rewards against each other, and what each pair costs."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

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
from orchestrator.report.units import units_in

PAIRS = 6
"""Panels at most."""


def rewards_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw one panel per pair of sought rewards, with intervals, thresholds, and the KL as colour.

    Args:
        document: Of the report.

    Returns:
        ``rewards.svg`` and ``rewards.png``; nothing with fewer than two sought rewards or without trials.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names = [reward["name"] for reward in document["rewards"] if reward["sought"]]
    pairs = list(combinations(names, 2))[:PAIRS]
    trials = [trial for trial in document["trials"] if trial.get("kl")]
    if not pairs or not trials:
        return {}
    means = {reward["name"]: reward["held_out_mean"] for reward in document["rewards"]}
    colors = ScalarMappable(
        norm=Normalize(0.0, max(trial["kl"][0] for trial in trials) or 1.0), cmap="cividis_r"
    )
    units = units_in(document["constraints"])
    with mpl.rc_context(RC):
        figure, grid = panels(len(pairs))
        for axes, (across, up) in zip(grid, pairs, strict=True):
            for trial in trials:
                both = trial.get("rewards", {})
                if across not in both or up not in both:
                    continue
                x, y = both[across], both[up]
                color = colors.to_rgba(trial["kl"][0])
                filled = bool(trial.get("feasible"))
                axes.errorbar(
                    x[0],
                    y[0],
                    xerr=_half(x),
                    yerr=_half(y),
                    marker=style(trial["method"])[1],
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
                for threshold in thresholds_on(document, name):
                    draw(threshold, color=FAINT, linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
            if means[across] is not None and means[up] is not None:
                axes.plot(
                    [means[across]],
                    [means[up]],
                    marker="*",
                    color=INK,
                    markersize=8,
                    linestyle="none",
                    zorder=5,
                )
            for name, axis in ((across, axes.xaxis), (up, axes.yaxis)):
                unit = units.of_reward(name)
                show_in(axis, unit, unit.title(name))
        figure.colorbar(colors, ax=grid, label="KL to the pretrained model (nats)", shrink=0.8)
        methods = {
            method["method"]: method["feasible"] < method["succeeded"] for method in document["methods"]
        }
        handles = [
            *method_entries(methods),
            entry("pretrained", marker="*", color=INK, markersize=8),
        ]
        for handle in handles[:-1]:
            handle.set_color(INK)
        legend(figure, handles, columns=6 if len(pairs) > 1 else 2)
        return saved(figure, "rewards")


def thresholds_on(document: Mapping[str, Any], reward: str) -> list[float]:
    """Thresholds of the constrained trials on a reward, ascending."""
    names = [c["name"] for c in document["constraints"] if c["kind"] == "reward" and c["target"] == reward]
    found = {
        trial["thresholds"][name]
        for trial in document["trials"]
        for name in names
        if trial["method"] == "constrained" and name in trial.get("thresholds", {})
    }
    return sorted(found)


def _half(interval: list[float | None]) -> list[list[float]] | None:
    mean, low, high = interval
    if mean is None or low is None or high is None:
        return None
    return [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
