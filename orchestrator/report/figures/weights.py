"""Weights of the models of a composition: on the triangle where there are three, else as bars."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.report.figures.style import FAINT, INK, RC, legend, marked, method_entries, saved
from orchestrator.report.page.lines import spread

FloatArray = NDArray[np.float64]

_CORNERS = np.array([[0.5, np.sqrt(0.75)], [0.0, 0.0], [1.0, 0.0]])
_ROWS = 24
_SHADES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def weights_figure(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw what each model counts for: found by training where constrained, fixed where weighted.

    Returns:
        ``weights.svg`` and ``weights.png``; nothing without a composition.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    models = document["models"]
    found = [(trial, weights_of(trial, models)) for trial in document["trials"]]
    rows = [(trial, weights) for trial, weights in found if weights is not None]
    if len(models) < 2 or not rows:
        return {}
    with mpl.rc_context(RC):
        if len(models) == len(_CORNERS):
            figure = Figure(figsize=(4.6, 4.4), layout="constrained")
            _triangle(figure, models, rows)
        else:
            kept = spread(rows, _ROWS)
            figure = Figure(figsize=(6.2, 1.2 + 0.3 * len(kept)), layout="constrained")
            _bars(figure, models, kept)
        return saved(figure, "weights")


def weights_of(trial: Mapping[str, Any], models: Sequence[str]) -> FloatArray | None:
    """Return the weights of a trial ``[m]``, which sum to 1; None where it has none."""
    values = [trial.get("multipliers", {}).get(name, trial.get("weights", {}).get(name)) for name in models]
    if any(value is None for value in values) or sum(values) <= 0:
        return None
    weights = np.array(values, dtype=np.float64)
    shares: FloatArray = weights / weights.sum()
    return shares


def _triangle(
    figure: Any, models: Sequence[str], rows: Sequence[tuple[Mapping[str, Any], FloatArray]]
) -> None:
    axes = figure.subplots()
    closed = np.concatenate([_CORNERS, _CORNERS[:1]])
    axes.plot(closed[:, 0], closed[:, 1], color=INK, linewidth=0.8)
    for share in (0.25, 0.5, 0.75):
        for place in range(len(_CORNERS)):
            others = [each for each in range(len(_CORNERS)) if each != place]
            ends = np.zeros((2, len(_CORNERS)))
            ends[:, place] = share
            ends[0, others[0]] = ends[1, others[1]] = 1.0 - share
            line = ends @ _CORNERS
            axes.plot(line[:, 0], line[:, 1], color=FAINT, linewidth=0.5, zorder=0)
    for name, corner, lift in zip(models, _CORNERS, (8, -14, -14), strict=True):
        axes.annotate(name, corner, xytext=(0, lift), textcoords="offset points", ha="center")
    methods: dict[str, bool] = {}
    for trial, weights in rows:
        at = weights @ _CORNERS
        feasible = bool(trial.get("feasible"))
        methods[trial["method"]] = methods.get(trial["method"], False) or not feasible
        marked(axes, [at[0]], [at[1]], trial["method"], feasible=feasible, size=6.5)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.margins(0.12)
    legend(figure, method_entries(methods), columns=2)


def _bars(figure: Any, models: Sequence[str], rows: Sequence[tuple[Mapping[str, Any], FloatArray]]) -> None:
    axes = figure.subplots()
    left = np.zeros(len(rows))
    for place, name in enumerate(models):
        shares = np.array([weights[place] for _, weights in rows])
        axes.barh(
            range(len(rows)),
            shares,
            left=left,
            label=name,
            color=_SHADES[place % len(_SHADES)],
            edgecolor="white",
        )
        left += shares
    axes.set_yticks(range(len(rows)), [trial["label"] for trial, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel("weight on the simplex")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
