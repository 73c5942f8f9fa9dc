"""Attainment surfaces: what one seed, half of them and all of them reach."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.report.figures.style import INK, RC, entry, legend, panels, saved, show_in, style
from orchestrator.report.units import units_in

_LOOKS = {"one": (0, (5, 2)), "half": (0, (1, 1.5)), "all": "-"}


def attainment_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw, per sought reward and method, the KL at which so many seeds attain each value.

    Returns:
        ``attainment.svg`` and ``attainment.png``; nothing with one seed.
    """
    import matplotlib as mpl

    surfaces = [surface for surface in document["attained"] if surface["points"]]
    names = list(dict.fromkeys(surface["reward"] for surface in surfaces))
    if not names:
        return {}
    methods = list(dict.fromkeys(surface["method"] for surface in surfaces))
    units = units_in(document["constraints"])
    with mpl.rc_context(RC):
        figure, grid = panels(len(names))
        for axes, name in zip(grid, names, strict=True):
            for surface in surfaces:
                if surface["reward"] != name:
                    continue
                points = np.array(surface["points"], dtype=np.float64)
                axes.step(
                    points[:, 0],
                    points[:, 1],
                    where="pre",
                    color=style(surface["method"])[0],
                    linestyle=_LOOKS[level_of(surface)],
                    linewidth=1.3,
                )
            unit = units.of_reward(name)
            show_in(axes.xaxis, unit, unit.title(name))
            axes.set_ylim(bottom=0.0)
        grid[0].set_ylabel("KL to the pretrained model (nats)")
        handles = [entry(method, linestyle="-", color=style(method)[0]) for method in methods]
        levels = dict.fromkeys(level_of(surface) for surface in surfaces)
        told = {"one": "attained by one seed", "half": "by half of them", "all": "by all"}
        handles += [entry(told[level], linestyle=_LOOKS[level], color=INK) for level in levels]
        legend(figure, handles)
        return saved(figure, "attainment")


def level_of(surface: Mapping[str, Any]) -> str:
    """Return ``all``, ``one`` or ``half``."""
    if surface["level"] == surface["of"]:
        return "all"
    return "one" if surface["level"] == 1 else "half"
