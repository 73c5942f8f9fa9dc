"""Trials as records of the report's JSON document: what a reader wants to know of one, null left out."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.frontier.summary import FrontierSummary
from orchestrator.plan import Plan, describe
from orchestrator.results.schema import constraint_names, model_names, reward_names

MOST = 2000
"""Trials in one report; of more the front, then an even sample: a browser shows no more, and nobody reads them."""

_DIGITS = 6

_PLAIN = (
    "method",
    "seed",
    "status",
    "error",
    "feasible",
    "kl_least",
    "excess_kl",
    "kl_ratio",
    "steps",
    "wall_seconds",
    "gpu_seconds",
    "started_at",
    "finished_at",
    "adapter",
    "base_trial",
    "diversity",
    "notes",
    "sampler",
    "acceptance",
    "effective_samples",
)


def rounded(value: float | None, digits: int = _DIGITS) -> float | None:
    """A number with as many digits as a reader can use; None where there is none."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def shown(trials: pa.Table, summary: FrontierSummary | None, most: int = MOST) -> pa.Table:
    """The trials of a report, in the order of their table: all, or the fronts and an even sample of the others."""
    if trials.num_rows <= most:
        return trials
    front = _column(summary, "non_dominated")
    first = [row for row, name in enumerate(trials["trial_id"].to_pylist()) if front.get(name)]
    first = [first[at] for at in _evenly(len(first), most)]
    rest = np.setdiff1d(np.arange(trials.num_rows), first)
    kept = np.union1d(first, rest[_evenly(len(rest), most - len(first))])
    return trials.take(pa.array(kept.astype(np.int64)))


def trial_records(trials: pa.Table, summary: FrontierSummary | None, plan: Plan) -> list[dict[str, Any]]:
    """Return one record per trial: ``id``, ``label``, what a row has, and by NAME its figures.

    ``kl``, ``rewards``, ``kls`` and ``retention`` are ``[mean, low, high]``, the ends null where unknown;
    ``thresholds``, ``violations``, ``multipliers`` and ``weights`` single numbers. ``front``: it is non-dominated.
    """
    labels = {trial.trial_id: describe(trial.config) for trial in plan.trials}
    rewards, models = reward_names(trials.schema), model_names(trials.schema)
    constraints = constraint_names(trials.schema)
    retained = [
        name.removeprefix("retention_")
        for name in trials.schema.names
        if name.startswith("retention_") and not name.endswith(("_low", "_high"))
    ]
    added = {name: _column(summary, name) for name in ("non_dominated", "kl_least", "excess_kl", "kl_ratio")}
    records = []
    for row in trials.to_pylist():
        trial_id = row["trial_id"]
        row |= {name: found[trial_id] for name, found in added.items() if trial_id in found}
        record: dict[str, Any] = {
            "id": trial_id,
            "label": labels.get(trial_id, f"{row['method']} seed {row['seed']}"),
            "front": bool(row.get("non_dominated")),
        }
        record |= {name: _plain(row[name]) for name in _PLAIN if row.get(name) is not None}
        record["kl"] = interval(row, "kl")
        record |= {
            "rewards": _intervals(row, "reward", rewards),
            "kls": _intervals(row, "kl", models),
            "retention": _intervals(row, "retention", retained),
            "thresholds": _numbers(row, "threshold", constraints),
            "violations": _numbers(row, "violation", constraints),
            "multipliers": _numbers(row, "multiplier", dict.fromkeys((*constraints, *models))),
            "weights": _numbers(row, "weight", dict.fromkeys((*rewards, *models))),
        }
        records.append({name: value for name, value in record.items() if value not in (None, {})})
    return records


def interval(row: Mapping[str, Any], name: str) -> list[float | None] | None:
    """``[mean, low, high]`` of a column, or None without a mean."""
    mean = rounded(row.get(name))
    return None if mean is None else [mean, rounded(row.get(f"{name}_low")), rounded(row.get(f"{name}_high"))]


def _intervals(row: Mapping[str, Any], kind: str, names: Iterable[str]) -> dict[str, list[float | None]]:
    found = {name: interval(row, f"{kind}_{name}") for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _numbers(row: Mapping[str, Any], kind: str, names: Iterable[str]) -> dict[str, float]:
    found = {name: rounded(row.get(f"{kind}_{name}")) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return rounded(value) if isinstance(value, float) else value


def _column(summary: FrontierSummary | None, name: str) -> dict[str, Any]:
    """A column of the summary's points by trial."""
    if summary is None or name not in summary.points.column_names:
        return {}
    points = summary.points.select(["trial_id", name])
    points = points.filter(pc.is_valid(points[name]))
    return dict(zip(points["trial_id"].to_pylist(), points[name].to_pylist(), strict=True))


def _evenly(count: int, most: int) -> Sequence[int]:
    if count <= most:
        return range(count)
    chosen: list[int] = np.unique(np.linspace(0, count - 1, max(most, 0)).round().astype(int)).tolist()
    return chosen
