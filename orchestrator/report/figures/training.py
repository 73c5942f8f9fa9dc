"""Multipliers, violations and KL over the steps of training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.report.figures.style import FAINT, INK, RC, entry, legend, panels, saved, show_in, style
from orchestrator.report.page.lines import spread
from orchestrator.report.units import ABSOLUTE, Units, Written, units_in

TRIALS = 24
"""Drawn at most; more cannot be told apart."""
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def training_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw one panel for KL and for each multiplier and violation, one line per constrained trial.

    Trials at the same thresholds share a colour; if there are more than six combinations, all constrained trials do.
    A sweep without constrained trials shows the weighted ones.

    Returns:
        ``training.svg`` and ``training.png``; nothing without curves.
    """
    import matplotlib as mpl

    curves = document["curves"]
    trials = [trial for trial in document["trials"] if trial["id"] in curves]
    trials = [trial for trial in trials if trial["method"] == "constrained"] or trials
    trials = spread(trials, TRIALS)
    units = units_in(document["constraints"])
    series = _series([curves[trial["id"]] for trial in trials], units)
    if not series:
        return {}
    groups = [trial["label"].rsplit(" seed", 1)[0] for trial in trials]
    names = list(dict.fromkeys(groups))
    colors = dict(zip(names, _CYCLE, strict=False)) if len(names) <= len(_CYCLE) else {}
    with mpl.rc_context(RC):
        figure, grid = panels(len(series), height=2.5)
        for axes, (label, of, unit, zero) in zip(grid, series, strict=True):
            for trial, group in zip(trials, groups, strict=True):
                values = of(curves[trial["id"]])
                if values is None:
                    continue
                axes.plot(
                    curves[trial["id"]]["step"],
                    np.array(values, dtype=np.float64),
                    color=colors.get(group, style(trial["method"])[0]),
                    linewidth=0.9,
                    alpha=0.85,
                )
            show_in(axes.yaxis, unit, "")
            if zero:
                axes.axhline(0.0, color=INK, linewidth=0.7)
            axes.set_title(label, fontsize=8.5, color=INK, loc="left")
            axes.grid(axis="y", color=FAINT, linewidth=0.3)
        for axes in grid[-3:]:
            axes.set_xlabel("optimiser step")
        legend(figure, [entry(name, linestyle="-", color=color) for name, color in colors.items()], columns=2)
        return saved(figure, "training")


def _series(curves: list[Mapping[str, Any]], units: Units) -> list[tuple[str, Any, Written, bool]]:
    """Title, reader, unit and whether 0 is a limit, of each panel."""
    found: list[tuple[str, Any, Written, bool]] = []
    if any("kl" in curve for curve in curves):
        found.append(("KL (nats)", lambda curve: curve.get("kl"), ABSOLUTE, False))
    for kind, title, zero in (
        ("multiplier", "multiplier of", False),
        ("violation", "violation of", True),
        ("kls", "KL to", False),
    ):
        names = dict.fromkeys(name for curve in curves for name in curve.get(kind, ()))
        for name in names:
            unit = units.of_constraint(name).difference if kind == "violation" else ABSOLUTE
            told = unit.change(f"{title} {name}") if kind == "violation" else f"{title} {name}"
            found.append((told, _reader(kind, name), unit, zero))
    return found


def _reader(kind: str, name: str) -> Any:
    return lambda curve: curve.get(kind, {}).get(name)
