"""Constrained training beside every weighted baseline, threshold combination by threshold combination."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.frontier.feasibility import standard_error, upper_bound
from orchestrator.report.figures.style import INK, RC, STYLES, entry, legend, saved, short
from orchestrator.report.page.lines import spread
from orchestrator.report.units import Units, units_in

ROWS = 16
"""Threshold combinations at most; of more an even sample."""


def baselines_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw one row per threshold combination: the KL of the constrained setting and of every weighted one.

    All are means over seeds. A setting is filled where it meets the thresholds of the row: where the one-sided 95 %
    bounds of its violations are within tolerance. The best of these weights are marked, with their KL as a multiple of
    the constrained one.

    Returns:
        ``baselines.svg`` and ``baselines.png``; nothing without a constrained trial.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cells = spread(document["comparison"], ROWS)
    if not cells:
        return {}
    targets = {c["name"]: c["target"] for c in document["constraints"] if c["kind"] == "reward"}
    settings = _settings(document["trials"])
    color, (other, square) = STYLES["constrained"][0], STYLES["weighted"]
    units = units_in(document["constraints"])
    with mpl.rc_context(RC):
        figure = Figure(figsize=(6.6, 1.2 + 0.34 * len(cells)), layout="constrained")
        axes = figure.subplots()
        for row, cell in enumerate(cells):
            axes.axhline(row, color="#EEEEEE", linewidth=0.8, zorder=0)
            for setting in settings:
                meets = _meets(setting, cell["thresholds"], document["constraints"])
                axes.plot(
                    [setting["kl"][0]],
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
                [cell["kl"]],
                [row],
                marker="o",
                markersize=6.5,
                markerfacecolor=color if cell["met"] else "white",
                markeredgecolor="white" if cell["met"] else color,
                markeredgewidth=0.6 if cell["met"] else 1.2,
                linestyle="none",
                zorder=4,
            )
            if cell["rival_kl"] is not None:
                axes.plot(
                    [cell["rival_kl"]],
                    [row],
                    marker="o",
                    markersize=9,
                    markerfacecolor="none",
                    markeredgecolor=INK,
                    markeredgewidth=0.9,
                    linestyle="none",
                    zorder=3,
                )
            told = (
                "none meets"
                if cell["rival_kl"] is None
                else f"× {short(cell['ratio'])}"
                if cell["ratio"]
                else ""
            )
            axes.annotate(
                told,
                xy=(1.0, row),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                annotation_clip=False,
            )
        axes.set_yticks(range(len(cells)), [_label(cell["thresholds"], targets, units) for cell in cells])
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


def _settings(trials: Iterable[Mapping[str, Any]]) -> list[dict[str, tuple[float, float]]]:
    """Mean and standard error over the seeds of each weighting, of ``kl`` and every reward."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        if trial["method"] == "weighted" and trial.get("kl"):
            groups.setdefault(trial["label"].rsplit(" seed", 1)[0], []).append(trial)
    return [
        {
            name: _pooled([values for values in found if values is not None])
            for name, found in {
                "kl": [seed["kl"] for seed in seeds],
                **{
                    name: [seed.get("rewards", {}).get(name) for seed in seeds]
                    for name in seeds[0].get("rewards", {})
                },
            }.items()
        }
        for seeds in groups.values()
    ]


def _pooled(intervals: list[list[float]]) -> tuple[float, float]:
    figures = np.array(intervals, dtype=np.float64)
    errors = np.nan_to_num(standard_error(figures[:, 1], figures[:, 2]))
    return float(figures[:, 0].mean()), float(np.sqrt((errors**2).mean()))


def _meets(
    setting: Mapping[str, tuple[float, float]],
    thresholds: Mapping[str, float],
    constraints: Sequence[Mapping[str, Any]],
) -> bool:
    for constraint in constraints:
        bound = thresholds.get(constraint["name"])
        if bound is None:
            continue
        budget = constraint["kind"] == "kl"
        mean, error = setting.get("kl" if budget else constraint["target"], (np.nan, np.nan))
        violation = mean - bound if budget else bound - mean
        allowed = constraint["tolerance"] * (bound if budget else 1.0)
        if not upper_bound(violation, error) <= allowed:
            return False
    return True


def _label(thresholds: Mapping[str, float], targets: Mapping[str, str], units: Units) -> str:
    return ", ".join(
        f"{name} {'≥' if name in targets else '≤'} {units.of_constraint(name).say(bound)}"
        for name, bound in thresholds.items()
    )
