"""Running trials as a table that is drawn again and again: in ``run`` and in ``status --watch``, from the same records.

In 80 columns a trial takes two lines; on a wide terminal one. Nothing is told by colour alone, and where the terminal
has no block characters a sparkline is left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.report.terminal.tables import number

Order = Literal["state", "kl", "violation", "left", "trial"]
ORDERS: tuple[Order, ...] = get_args(Order)
BLOCKS = "▁▂▃▄▅▆▇█"
WIDE = 120
"""Columns from which a trial has one line."""
TRAIL = 16
"""Values of a sparkline."""

Running = Mapping[str, Any]
"""A running trial as in the heartbeat: ``trial_id, state, label, most_steps`` and what it reported last, with
``kl_trail`` and ``violation_trail``, the last values of KL (nats) and of the largest violation (reward units)."""


def sparkline(values: Sequence[float], *, low: float | None = None) -> str:
    """Return values as block characters, scaled to their range; ``low`` is the least end of the scale."""
    if not values:
        return ""
    bottom = min(values) if low is None else min(low, *values)
    span = max(values) - bottom
    if span <= 0:
        return BLOCKS[0] * len(values)
    return "".join(
        BLOCKS[min(int((value - bottom) / span * len(BLOCKS)), len(BLOCKS) - 1)] for value in values
    )


def live_table(
    running: Sequence[Running],
    *,
    console: Console,
    order: Order = "state",
    closing: Sequence[str] = (),
) -> RenderableType:
    """Show the running trials and below them how far the sweep is.

    Args:
        running: See ``Running``.
        console: Whose width and characters count.
        order: What they are sorted by.
        closing: Lines below the table: trials done, time and cost left, the gap of a search.
    """
    blocks = _has_blocks(console)
    ordered = sorted(running, key=_keys(order))
    below = [Text(line) for line in closing]
    if console.width < WIDE:
        return Group(*(line for trial in ordered for line in _lines(trial, blocks=blocks)), *below)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column("trial", no_wrap=True)
    table.add_column("what", overflow="fold")
    for name in ("step", "KL, nats", "worst violation", "left"):
        table.add_column(name, no_wrap=True, justify="right" if name == "left" else "left")
    for trial in ordered:
        table.add_row(
            trial["trial_id"],
            _label(trial),
            _step(trial),
            _kl(trial, blocks=blocks),
            _violation(trial, blocks=blocks),
            _duration(seconds_left(trial)),
        )
    return Group(table, *below)


def _lines(trial: Running, *, blocks: bool) -> tuple[Text, Text]:
    """Figures above, and what the trial is below."""
    kl, violation = _kl(trial, blocks=blocks), _violation(trial, blocks=blocks)
    figures = [
        trial["trial_id"],
        _step(trial),
        f"KL {kl}" if kl else "",
        f"g {violation}" if violation else "",
        _duration(seconds_left(trial)),
    ]
    return (
        Text("  ".join(part for part in figures if part), no_wrap=True, overflow="ellipsis"),
        Text(f"    {_label(trial)}", no_wrap=True, overflow="ellipsis"),
    )


def worst_violation(trial: Running) -> tuple[str, float] | None:
    """Return name and value of the largest violation, reward units; met thresholds are at most 0."""
    found = [
        (key.removeprefix("violation_"), float(value))
        for key, value in trial.items()
        if key.startswith("violation_") and isinstance(value, int | float)
    ]
    return max(found, key=lambda item: item[1], default=None)


def seconds_left(trial: Running) -> float | None:
    """At the present pace to the last possible step; converged trials end earlier."""
    step, seconds, most = trial.get("step"), trial.get("seconds"), trial.get("most_steps")
    if not step or not seconds or not most:
        return None
    return float((most - step) * seconds / step)


def _keys(order: Order) -> Callable[[Running], tuple[Any, ...]]:
    """In trouble first, dearest first, most violated first, or soonest done first."""

    def of(trial: Running) -> tuple[Any, ...]:
        worst, left = worst_violation(trial), seconds_left(trial)
        keys: dict[Order, Any] = {
            "state": (trial["state"] == "running", "step" in trial),
            "kl": -float(trial["kl"]) if trial.get("kl") is not None else float("inf"),
            "violation": float("inf") if worst is None else -worst[1],
            "left": float("inf") if left is None else left,
            "trial": 0,
        }
        return (keys[order], trial["trial_id"])

    return of


def _label(trial: Running) -> str:
    again = trial.get("restored_step")
    origin = f" (continued from step {again})" if again else ""
    state = "" if trial["state"] == "running" else f"{trial['state']}: "
    return f"{state}{trial['label']}{origin}"


def _step(trial: Running) -> str:
    if "step" not in trial:
        return "starting"
    most = trial.get("most_steps")
    return f"{trial['step']}/{most}" if most else str(trial["step"])


def _kl(trial: Running, *, blocks: bool) -> str:
    if trial.get("kl") is None:
        return ""
    drawn = sparkline(trial.get("kl_trail", ()), low=0.0) if blocks else ""
    return f"{float(trial['kl']):.3f} {drawn}".rstrip()


def _violation(trial: Running, *, blocks: bool) -> str:
    worst = worst_violation(trial)
    if worst is None:
        return ""
    name, value = worst
    drawn = sparkline(trial.get("violation_trail", ())) if blocks else ""
    sign = "+" if value > 0 else "−" if value < 0 else ""
    met = "met" if value <= 0 else "missed"
    return f"{name} {sign}{number(abs(value))} {met} {drawn}".rstrip()


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f"<{clock(seconds)}"


def clock(seconds: float) -> str:
    """Return a duration as ``42 s``, ``3 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _has_blocks(console: Console) -> bool:
    try:
        BLOCKS.encode(console.encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return not console.legacy_windows
