"""Reward against KL as characters: a look at the frontier where there is no picture."""

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from orchestrator.frontier.summary import FrontierSummary

FloatArray = NDArray[np.float64]

MARKS = {"constrained": "o", "weighted": "x"}
"""Of feasible trials; an infeasible one is a dot. Other methods have their first letter."""
ROWS = 12
MARGIN = 8
"""Columns left of the axis."""


def frontier_plot(summary: FrontierSummary, reward: str, width: int = 80) -> Text:
    """Draw KL, upwards, against one reward, to the right.

    Args:
        summary: The sweep.
        reward: Name of a sought reward.
        width: Columns of the terminal, at least 40.

    Raises:
        ValueError: The reward is not one of the sweep's sought ones.
    """
    if reward not in summary.sought:
        raise ValueError(f"no reward {reward!r}; the frontier has {', '.join(summary.sought)}")
    points = summary.points
    across, upwards = points.rewards[reward].mean, points.kl.mean
    known = np.isfinite(across) & np.isfinite(upwards)
    mean = summary.baseline.rewards[reward].mean
    columns = max(width, 40) - MARGIN - 2
    low, high = _ends(np.append(across[known], mean))
    top = 1.05 * float(upwards[known].max(initial=1e-3))
    canvas = [[" "] * columns for _ in range(ROWS)]

    def put(x: float, y: float, mark: str) -> None:
        column = round((x - low) / (high - low) * (columns - 1))
        row = ROWS - 1 - round(min(max(y, 0.0), top) / top * (ROWS - 1))
        canvas[row][column] = mark

    put(mean, 0.0, "*")
    methods, feasible = points.methods, points.feasible
    # Constrained trials last, so that they are on top.
    for index in sorted(np.flatnonzero(known).tolist(), key=lambda row: methods[row] == "constrained"):
        mark = MARKS.get(methods[index], methods[index][:1]) if feasible[index] else "."
        put(float(across[index]), float(upwards[index]), mark)

    lines = ["KL, nats".rjust(MARGIN)]
    for row, cells in enumerate(canvas):
        label = f"{top * (ROWS - 1 - row) / (ROWS - 1):.3g}" if row % 3 == 2 or row == 0 else ""
        lines.append(f"{label:>{MARGIN - 1}} |{''.join(cells)}".rstrip())
    lines.append(" " * MARGIN + "+" + "-" * columns)
    left, right = f"{low:.4g}", f"{high:.4g}"
    middle = reward.center(columns - len(left) - len(right))
    lines.append(" " * (MARGIN + 1) + left + middle + right)
    lines.append(" " * (MARGIN + 1) + _legend(summary, not feasible.all()))
    return Text("\n".join(lines), no_wrap=True, overflow="crop")


def _ends(values: FloatArray) -> tuple[float, float]:
    span = float(np.ptp(values)) or max(abs(float(values[0])), 1.0) * 0.1
    return float(values.min()) - 0.03 * span, float(values.max()) + 0.03 * span


def _legend(summary: FrontierSummary, infeasible: bool) -> str:
    entries = [f"{MARKS.get(method.method, method.method[:1])} {method.method}" for method in summary.methods]
    return "   ".join([*entries, *([". infeasible"] if infeasible else []), "* pretrained"])
