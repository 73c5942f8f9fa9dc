"""What a trial changes from prompt to prompt."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.report.figures.style import FAINT, INK, RC, STYLES, saved, show_in
from orchestrator.report.units import units_in


def prompts_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the change of every reward for each prompt under the trial to take, with 95 % intervals.

    Prompts are in the order of the first reward's change, the same in all panels.

    Returns:
        ``prompts.svg`` and ``prompts.png``; nothing without prompts.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    changes = (document["prompts"] or {}).get("changes", {})
    taken = document["words"]["taken"]
    trial_id = taken if taken in changes else next(iter(changes), None)
    if trial_id is None:
        return {}
    found = {name: np.array(rows, dtype=np.float64) for name, rows in changes[trial_id].items()}
    prompts = document["prompts"]["prompts"]
    order = np.argsort(-np.nan_to_num(next(iter(found.values()))[:, 0]), kind="stable")
    color = STYLES["constrained"][0]
    units = units_in(document["constraints"])
    with mpl.rc_context(RC):
        height = 1.0 + 0.155 * len(prompts)
        figure = Figure(figsize=(2.2 + 2.1 * len(found), height), layout="constrained")
        grid = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, (name, rows) in zip(grid, found.items(), strict=True):
            mean, low, high = rows[order].T
            places = np.arange(len(order))
            axes.hlines(places, low, high, color=color, linewidth=0.9, alpha=0.6)
            axes.plot(mean, places, linestyle="none", marker="o", markersize=3, color=color)
            axes.axvline(0.0, color=INK, linewidth=0.7)
            axes.grid(axis="x", color=FAINT, linewidth=0.3)
            unit = units.of_reward(name).difference
            show_in(axes.xaxis, unit, unit.change(f"change of {name}"))
        grid[0].set_yticks(np.arange(len(order)), [prompts[at] for at in order], fontsize=6.5)
        grid[0].set_ylim(len(order) - 0.4, -0.6)
        figure.suptitle(f"trial {trial_id}, on the noise of the pretrained model", fontsize=8.5, color=INK)
        return saved(figure, "prompts")
