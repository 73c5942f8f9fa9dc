"""Trials for all weights of a composition, as the report moves through them: what was measured at some weights."""

from typing import Any

import numpy as np

from orchestrator.frontier.composed_adapters import answer_of
from orchestrator.frontier.trials import Trials
from orchestrator.plan import Plan, labels
from orchestrator.report.page.boxes import answered
from orchestrator.report.page.lines import Memory
from orchestrator.report.page.records import rounded
from orchestrator.results.store import SweepStore
from trainers.types import Interval


def composed_records(
    store: SweepStore, plan: Plan, trials: Trials, memory: Memory, *, images: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return one record per finished trial for all weights, and what was wrong with pictures.

    ``points`` have, in the order of ``models``, ``weights``, ``kls`` and ``retention`` (``[mean, low, high]``, null
    where it is not known); ``kl``, the largest, null where one is not known, and ``picture``. The first is at the
    weights that were found.
    """
    finished, problems = answered(store, plan, trials, memory, images=images)
    found, known = [], labels(plan.trials)
    for trial, table, shots in finished:
        names = [model.name for model in trial.config.model.constituents]
        answers = [answer_of(trial.config, row) for row in table.to_pylist()]
        found.append(
            {
                "id": trial.trial_id,
                "label": known[trial.trial_id],
                "models": names,
                "points": [
                    {
                        "weights": [rounded(answer.multipliers[name]) for name in names],
                        "kl": _ends(answer.kl),
                        "kls": [_ends(answer.constituents.get(name)) for name in names],
                        "retention": [_ends(answer.retention.get(name)) for name in names],
                        "picture": shots[place] if shots else None,
                    }
                    for place, answer in enumerate(answers)
                ],
            }
        )
    return found, problems


def _ends(figure: Interval | None) -> list[float | None] | None:
    return (
        None
        if figure is None or not np.isfinite(figure.mean)
        else [rounded(value) for value in (figure.mean, figure.low, figure.high)]
    )
