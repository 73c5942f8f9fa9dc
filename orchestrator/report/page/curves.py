"""Training curves as columns of numbers, thinned to what a screen shows."""

from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.frontier.trials import real, spread
from orchestrator.report.page.records import rounded

_KINDS = ("violation", "multiplier", "reward", "kl")
_FIXED = ("kl", "kkt_residual")
_POINTS, _LEAST, _MOST = 60_000, 24, 160
"""Steps of all trials together, and of one trial at least and at most."""


def training_curves(history: pa.Table) -> dict[str, dict[str, Any]]:
    """Return by trial ``step``, ``kl``, ``kkt_residual``, and by NAME the other kinds.

    Args:
        history: Rows of ``history/*.parquet``. Of a trial with many steps every k-th is kept, and the last.
    """
    if not history.num_rows:
        return {}
    ids = np.asarray(history["trial_id"].to_pylist(), dtype=object)
    steps = real(history, "step")
    columns = _columns(history)
    values = {name: real(history, name) for name, _, _ in columns}
    names, first = np.unique(ids, return_inverse=True)
    most = int(np.clip(_POINTS // len(names), _LEAST, _MOST))
    curves = {}
    order = np.lexsort((steps, first))
    edges = np.flatnonzero(np.diff(first[order])) + 1
    for rows in np.split(order, edges):
        kept = rows[spread(len(rows), most)]
        curve: dict[str, Any] = {"step": [int(step) for step in steps[kept]]}
        for name, kind, inner in columns:
            found = values[name][kept]
            if not np.isfinite(found).any():
                continue
            series = [rounded(value, 4) for value in found.tolist()]
            if inner is None:
                curve[kind] = series
            else:
                curve.setdefault(kind, {})[inner] = series
        curves[str(ids[rows[0]])] = curve
    return curves


def _columns(history: pa.Table) -> list[tuple[str, str, str | None]]:
    """Column, kind and NAME of what is drawn."""
    found: list[tuple[str, str, str | None]] = [
        (name, name, None) for name in _FIXED if name in history.column_names
    ]
    for name in history.column_names:
        kind, _, inner = name.partition("_")
        if kind not in _KINDS or not inner or name in _FIXED or name.endswith(("_low", "_high")):
            continue
        found.append((name, "kls" if kind == "kl" else kind, inner))
    return found
