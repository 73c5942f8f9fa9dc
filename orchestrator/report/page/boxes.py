"""Trials for a box of thresholds, as the report moves through them: what was measured at a design of thresholds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.frontier.bounds import FrontierPoint, bounded, pretrained_point
from orchestrator.frontier.feasibility import standard_error
from orchestrator.frontier.sampled import PRETRAINED
from orchestrator.frontier.trials import Trials, real
from orchestrator.plan import Plan, PlannedTrial, labels, resolve_thresholds, resolve_tightest
from orchestrator.report.page.lines import Memory
from orchestrator.report.page.pickable import columns_of
from orchestrator.report.page.records import rounded
from orchestrator.report.page.thumbnails import pictures_of
from orchestrator.results import layout
from orchestrator.results.store import SweepStore
from trainers.config import BaselineStatistics

_PICTURES = 2_500_000
"""Bytes of all pictures of all boxes."""


def box_records(
    store: SweepStore,
    plan: Plan,
    trials: Trials,
    baseline: BaselineStatistics,
    pretrained: Mapping[str, tuple[float, float]],
    memory: Memory,
    *,
    images: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return one record per finished trial for a box, and what was wrong with pictures.

    ``constraints`` have ``name``, ``target``, ``low`` and ``high``, the ends of the box, in reward units or nats;
    ``points`` have ``thresholds``, ``multipliers``, ``kl`` and ``rewards`` (``[mean, low, high]``), ``feasible``,
    ``picture`` and ``least``: a tangent below the least KL, with ``kl``, ``kind`` and ``slopes`` by reward, or null.
    ``pick`` are the points as candidates, between which a page bounds the KL; null with a KL budget.
    """
    finished, problems = answered(store, plan, trials, memory, images=images)
    known = labels(plan.trials)
    found = [
        _record(trial, known[trial.trial_id], table, shots, trials, baseline, pretrained)
        for trial, table, shots in finished
    ]
    return found, problems


def answered(
    store: SweepStore, plan: Plan, trials: Trials, memory: Memory, *, images: bool
) -> tuple[list[tuple[PlannedTrial, pa.Table, list[Any]]], list[str]]:
    """Return finished trials with answers, these, and their pictures, if any; and what was wrong with pictures."""
    done = set(trials.ids[trials.succeeded & (trials.methods == "frontier")].tolist())
    finished = [trial for trial in plan.trials if trial.trial_id in done]
    tables = [store.answers(trial.trial_id) for trial in finished]
    paths = [
        _shots(store, trial.trial_id, table.num_rows) if images else []
        for trial, table in zip(finished, tables, strict=True)
    ]
    pictures, problems = pictures_of(store, [path for own in paths for path in own], memory, most=_PICTURES)
    left, found = iter(pictures), []
    for trial, table, own in zip(finished, tables, paths, strict=True):
        shots = [next(left) for _ in own]
        if table.num_rows:
            found.append((trial, table, shots))
    return found, problems


def _shots(store: SweepStore, trial_id: str, count: int) -> list[str]:
    """Return where the pictures of so many answers lie."""
    kept = store.beside_round(trial_id)
    return [layout.answer_image(trial_id, place, kept) for place in range(count)]


def _record(
    trial: PlannedTrial,
    label: str,
    table: pa.Table,
    shots: Sequence[Any],
    trials: Trials,
    baseline: BaselineStatistics,
    pretrained: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    loosest = resolve_thresholds(trial.config, baseline)
    ends = resolve_tightest(trial.config, baseline)
    names, rewards = [c.name for c in trial.config.constraints], list(trials.rewards)
    rows = range(table.num_rows)

    def interval(name: str, row: int) -> list[float | None]:
        return [rounded(float(real(table, f"{name}{end}")[row])) for end in ("", "_low", "_high")]

    def numbers(kind: str, row: int) -> dict[str, float | None]:
        return {name: rounded(float(real(table, f"{kind}_{name}")[row]), 9) for name in names}

    budgeted = any(c.kind == "kl" for c in trial.config.constraints) or trial.config.objective.kind != "kl"
    constrained = {target: name for name, target in bounded(trial.config)}
    known = [(PRETRAINED, pretrained_point(pretrained, [(name, name) for name in rewards]))]
    known += [(f"{trial.trial_id}.{row}", answered_point(table, row, rewards, constrained)) for row in rows]
    return {
        "id": trial.trial_id,
        "label": label,
        "constraints": [
            {
                "name": c.name,
                "target": c.target,
                "kind": c.kind,
                "low": loosest[c.name],
                "high": ends.get(c.name, loosest[c.name]),
            }
            for c in trial.config.constraints
        ],
        "points": [
            {
                "thresholds": numbers("threshold", row),
                "multipliers": numbers("multiplier", row),
                "kl": interval("kl", row),
                "rewards": {name: interval(f"reward_{name}", row) for name in rewards},
                "feasible": bool(table["feasible"][row].as_py()),
                "least": _tangent(table, row, rewards),
                "picture": shots[row] if shots else None,
            }
            for row in rows
        ],
        "pick": None if budgeted else columns_of(known, trials, baseline),
    }


def _tangent(table: pa.Table, row: int, rewards: Sequence[str]) -> dict[str, Any] | None:
    kl = float(real(table, "lower_bound")[row])
    if not np.isfinite(kl):
        return None
    slopes = {name: float(np.nan_to_num(real(table, f"lower_slope_{name}")[row])) for name in rewards}
    return {
        "kl": rounded(kl, 9),
        "kind": table["lower_bound_kind"][row].as_py(),
        "slopes": {name: rounded(slope, 9) for name, slope in slopes.items()},
    }


def answered_point(
    table: pa.Table, row: int, rewards: Sequence[str], constrained: Mapping[str, str]
) -> FrontierPoint:
    """Return a row of ``answers/`` as a candidate; a reward without a threshold has a price of 0.

    Args:
        table: Of one trial.
        row: In it.
        rewards: Of the candidate, in this order.
        constrained: Constraints by reward, of those that have one.
    """

    def figure(name: str) -> float:
        return float(real(table, name)[row])

    def error(name: str) -> float:
        return float(standard_error(figure(f"{name}_low"), figure(f"{name}_high")))

    prices = [figure(f"multiplier_{constrained[name]}") if name in constrained else 0.0 for name in rewards]
    met = np.array(
        [figure(f"threshold_{constrained[name]}") if name in constrained else -np.inf for name in rewards]
    )
    return FrontierPoint(
        rewards=np.array([figure(f"reward_{name}") for name in rewards]),
        kl=max(figure("kl"), 0.0),
        multipliers=np.maximum(prices, 0.0) if np.isfinite(prices).all() else None,
        reward_errors=np.array([error(f"reward_{name}") for name in rewards]),
        kl_error=error("kl"),
        met=met if table["feasible"][row].as_py() else None,
    )
