"""How all figures look: colours, markers, fonts, files.

Matplotlib is imported inside the functions: commands that draw nothing stay fast. Figures are made
without pyplot, so no state is shared and nothing needs a display.
"""

import io
from typing import TYPE_CHECKING, Any

from orchestrator.report.units import Written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

STYLES = {
    "constrained": ("#0072B2", "o"),
    "frontier": ("#009E73", "D"),
    "interpolated": ("#CC79A7", "^"),
    "weighted": ("#D55E00", "s"),
}
"""Colour and marker; Okabe & Ito's colours, told apart with every colour vision, and shapes without colour."""
OTHERS = (("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "D"))
"""For methods of other packages."""

INK, FAINT, EXACT = "#333333", "#BBBBBB", "#555555"

RC: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "svg.hashsalt": "cdsweep",
    # Prompts and names are text: two dollar signs in one are no formula, and a percent sign is no comment.
    "text.parse_math": False,
    "text.usetex": False,
}


def style(method: str) -> tuple[str, str]:
    """Return colour and marker of a method."""
    return STYLES.get(method) or OTHERS[sum(method.encode()) % len(OTHERS)]


def panels(
    count: int, width: float = 3.7, height: float = 3.1, *, sharey: bool = False
) -> "tuple[Figure, list[Axes]]":
    """Return a figure with so many panels, at most three in a row, inches each."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(max(count, 1), 3)
    rows = -(-max(count, 1) // columns)
    figure = Figure(figsize=(width * columns + 0.3, height * rows + 0.5), layout="constrained")
    grid: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten())
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid:
        axes.xaxis.set_major_locator(MaxNLocator(5))  # long numbers would touch
    return figure, grid[:count]


def show_in(axis: "Axis", unit: Written, label: str) -> None:
    """Label an axis whose data are in reward units in the unit of thresholds."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    class Locator(MaxNLocator):
        """Round numbers of the unit."""

        def tick_values(self, vmin: float, vmax: float) -> Any:
            return unit.back(super().tick_values(unit.of(vmin), unit.of(vmax)))

    axis.set_major_locator(Locator(5))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{round(unit.of(value), 9) + 0.0:g}".replace("-", "−"))
    )
    axis.set_label_text(label)


def from_zero(axes: "Axes") -> None:
    """Let the vertical axis begin at 0, or below where an interval does."""
    axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))


def entry(label: str, **look: Any) -> "Line2D":
    """Return an entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **{"linestyle": "none", "markersize": 5, **look})


def method_entries(methods: dict[str, bool]) -> "list[Line2D]":
    """Return entries for methods, each told whether some of its trials are infeasible."""
    entries = []
    for method, some_miss in methods.items():
        color, marker = style(method)
        entries.append(entry(method, marker=marker, color=color))
        if some_miss:
            entries.append(
                entry(f"{method}, infeasible", marker=marker, color=color, markerfacecolor="white")
            )
    return entries


def legend(figure: "Figure", handles: "list[Line2D]", columns: int = 6) -> None:
    """Put a legend above all panels."""
    if handles:
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=columns,
            frameon=False,
            handletextpad=0.4,
            columnspacing=1.4,
        )


def saved(figure: "Figure", name: str) -> dict[str, bytes]:
    """Return a figure as ``NAME.svg`` and ``NAME.png``."""
    content = {}
    for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 200})):
        sink = io.BytesIO()
        figure.savefig(sink, format=kind, **options)
        content[f"{name}.{kind}"] = sink.getvalue()
    return content


def short(value: float) -> str:
    """Return a number for a label."""
    return f"{value:.3g}".replace("-", "−")
