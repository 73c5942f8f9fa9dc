"""How well a certified search knows the frontier, setting by setting."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.report.figures.style import BOUND, FAINT, RC, entry, legend, saved


def search_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the largest gap between the bounds after every setting, and the bounds where it is.

    Returns:
        ``search.svg`` and ``search.png``; nothing without a certified search.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = document["bounds"]
    if not rows:
        return {}
    columns = {
        name: np.array([row[name] for row in rows], dtype=np.float64)
        for name in ("trials", "gap", "lower", "upper")
    }
    with mpl.rc_context(RC):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        low, high = columns["lower"], columns["upper"]
        axes.fill_between(columns["trials"], low, high, color=BOUND, alpha=0.15, linewidth=0)
        axes.plot(
            columns["trials"], columns["gap"], color="#0072B2", marker="o", markersize=3.5, linewidth=1.2
        )
        axes.grid(axis="y", color=FAINT, linewidth=0.3)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("settings that have ended")
        axes.set_ylabel("nats")
        handles = [
            entry(f"largest gap ({rows[-1]['kind']})", marker="o", linestyle="-", color="#0072B2"),
            entry("the bounds where it is", linestyle="-", color=BOUND),
        ]
        legend(figure, handles, columns=2)
        return saved(figure, "search")
