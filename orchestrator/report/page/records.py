"""Trials as records of the report's JSON document: what a reader wants to know of one, null left out."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import numpy as np

from orchestrator.frontier.trials import FloatArray, Measured, Trials, spread
from orchestrator.plan import PlannedTrial, labels

MOST = 2000
"""Trials in one report; of more the front, then an even sample: a browser shows no more, and nobody reads them."""

_DIGITS = 6

_PLAIN = (
    "error",
    "steps",
    "wall_seconds",
    "gpu_seconds",
    "started_at",
    "finished_at",
    "adapter",
    "base_trial",
    "diversity",
    "notes",
    "acceptance",
    "effective_samples",
)
"""Of the provenance."""


def rounded(value: float | None, digits: int = _DIGITS) -> float | None:
    """A number with as many digits as a reader can use; None where there is none."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def shown(trials: Trials, most: int = MOST) -> Trials:
    """The trials of a report, in the order of their table: all, or the fronts and an even sample of the others."""
    if len(trials) <= most:
        return trials
    first = np.flatnonzero(trials.front)
    first = first[spread(len(first), most)]
    rest = np.setdiff1d(np.arange(len(trials)), first)
    return trials.take(np.union1d(first, rest[spread(len(rest), most - len(first))]))


def trial_records(trials: Trials, planned: Iterable[PlannedTrial]) -> list[dict[str, Any]]:
    """Return one record per trial: ``id``, ``label``, what a row has, and by NAME its figures.

    ``kl``, ``rewards``, ``kls`` and ``retention`` are ``[mean, low, high]``, the ends null where unknown;
    ``thresholds``, ``violations``, ``multipliers`` and ``weights`` single numbers. ``front``: it is non-dominated.
    """
    known = labels(planned)
    provenance = trials.provenance.select([name for name in _PLAIN if name in trials.provenance.column_names])
    records = []
    for row, made in enumerate(provenance.to_pylist()):
        trial_id, method, seed = trials.ids[row], trials.methods[row], int(trials.seeds[row])
        record: dict[str, Any] = {
            "id": trial_id,
            "label": known.get(trial_id, f"{method} seed {seed}"),
            "front": bool(trials.front[row]),
            "method": method,
            "seed": seed,
            "status": trials.statuses[row],
            "feasible": bool(trials.feasible[row]) if trials.judged[row] else None,
            "kl_least": rounded(trials.least[row]),
            "excess_kl": rounded(trials.excess[row]),
            "kl_ratio": rounded(trials.ratio[row]),
            "sampler": trials.samplers[row],
            "kl": _interval(trials.kl, row),
            "rewards": _intervals(trials.rewards, row),
            "measured": _intervals(trials.measured, row),
            "deployed": _intervals(trials.deployed, row),
            "kls": _intervals(trials.kls, row),
            "retention": _intervals(trials.retention, row),
            "thresholds": _numbers(trials.thresholds, row),
            "violations": _numbers(trials.violations, row),
            "multipliers": _numbers(trials.multipliers, row),
            "weights": _numbers(trials.weights, row),
        }
        record |= {name: _plain(value) for name, value in made.items()}
        records.append({name: value for name, value in record.items() if value not in (None, {})})
    return records


def _interval(figure: Measured, row: int) -> list[float | None] | None:
    """``[mean, low, high]``, or None without a mean."""
    mean = rounded(figure.mean[row])
    return None if mean is None else [mean, rounded(figure.low[row]), rounded(figure.high[row])]


def _intervals(figures: Mapping[str, Measured], row: int) -> dict[str, list[float | None]]:
    found = {name: _interval(figure, row) for name, figure in figures.items()}
    return {name: value for name, value in found.items() if value is not None}


def _numbers(columns: Mapping[str, FloatArray], row: int) -> dict[str, float]:
    found = {name: rounded(column[row]) for name, column in columns.items()}
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return rounded(value) if isinstance(value, float) else value
