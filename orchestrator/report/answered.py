"""What trials for a box of thresholds were measured at, for those who read it beside the frontier of trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.plan import Plan, PlannedTrial
from orchestrator.results.store import SweepStore

FRONTIER = "frontier"
"""The method of trials for a box of thresholds."""


def finished_boxes(store: SweepStore, plan: Plan) -> list[PlannedTrial]:
    """Return the trials for a box of thresholds that have succeeded, in the order of the plan."""
    ended = store.trials()
    rows = zip(ended["trial_id"].to_pylist(), ended["status"].to_pylist(), strict=True)
    done = {trial_id for trial_id, status in rows if status == "succeeded"}
    return [trial for trial in plan.trials if trial.config.method == FRONTIER and trial.trial_id in done]


def answers(store: SweepStore, plan: Plan) -> list[dict[str, Any]]:
    """Return the answers of trials for a box that succeeded, those of a trial together, and ascending by KL.

    Each has ``trial_id``, ``seed``, ``kl`` with ``kl_low`` and ``kl_high`` in nats, ``rewards``, ``thresholds`` and
    ``multipliers`` by constraint, ``feasible``, ``lower_bound`` (nats) with its kind, and ``moving``: the constraints
    whose thresholds the box moves.

    Args:
        store: The sweep.
        plan: Its own.
    """
    found: list[dict[str, Any]] = []
    for trial in finished_boxes(store, plan):
        names = [constraint.name for constraint in trial.config.constraints]
        moving = [
            constraint.name for constraint in trial.config.constraints if constraint.tightest is not None
        ]
        rewards = [reward.name for reward in trial.config.rewards]
        rows = store.answers(trial.trial_id).to_pylist()
        for row in sorted(rows, key=lambda row: float(row["kl"])):
            ends = {name: row[name] for name in ("kl", "kl_low", "kl_high", "feasible")}
            found.append(
                {
                    "trial_id": trial.trial_id,
                    "seed": trial.config.seed,
                    **ends,
                    "rewards": {name: row[f"reward_{name}"] for name in rewards},
                    "thresholds": _of(row, "threshold", names),
                    "multipliers": _of(row, "multiplier", names),
                    "lower_bound": row.get("lower_bound"),
                    "lower_bound_kind": row.get("lower_bound_kind"),
                    "moving": moving,
                }
            )
    return found


def _of(row: Mapping[str, Any], kind: str, names: Sequence[str]) -> dict[str, Any]:
    return {name: row[f"{kind}_{name}"] for name in names}
