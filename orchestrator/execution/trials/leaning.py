"""Where a trial for a box of thresholds is farthest above the least KL, and another round of it that leans there.

The gap of an answer is what it pays, with what it is short of at its own prices, less what is known of the least KL at
its thresholds: ``K + λ'[g]₊ − L``, nats.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.frontier.problems import LeastKL
from orchestrator.report.sweep import read_solver
from orchestrator.results.store import SweepStore
from trainers.config import TrialConfig, TrialJob
from trainers.types import FloatArray


def leaning_job(job: TrialJob, store: SweepStore) -> TrialJob:
    """Return the job of another round of a trial, with the density of its thresholds."""
    from trainers.alignment.boxed.frontier import leaning

    rows = store.answers(job.trial_id).to_pylist()
    if not rows:
        return job
    known = gaps(job, rows, read_solver(store, job.config, job.baseline))
    asked = [[row[f"threshold_{c.name}"] for c in job.config.constraints] for row in rows]
    return leaning(job, np.array(asked), known)


def gaps(job: TrialJob, rows: Sequence[Mapping[str, Any]], predicted: LeastKL | None) -> FloatArray:
    """Return the gap of each answer, ``[p]``: nats; or, where no least KL is known, σ by which thresholds are missed.

    NaN where nothing is known of an answer and something of others.

    Args:
        job: Of the trial.
        rows: Of its answers.
        predicted: The least KL as samples of the pretrained model, or a closed form, have it; None where there is none.
    """
    known = np.array([_gap(job.config, row, predicted) for row in rows])
    if np.isfinite(known).any():
        return known
    return np.array([max(_missed(job, row)) for row in rows])


def _gap(config: TrialConfig, row: Mapping[str, Any], predicted: LeastKL | None) -> float:
    """Return the gap of an answer, nats; NaN where its least KL is neither certified nor predicted."""
    if config.objective.kind != "kl" or any(c.kind == "kl" for c in config.constraints):
        return float("nan")
    least = row["lower_bound"]
    if least is None and predicted is not None:
        asked = {target: row[f"threshold_{name}"] for name, target in config.targets.items()}
        least = predicted.least_kl(asked).kl
    if least is None or not np.isfinite(least):
        return float("nan")
    short = sum(
        (row[f"multiplier_{name}"] or 0.0) * max(row[f"violation_{name}"], 0.0) for name in config.targets
    )
    return float(row["kl"] + short - least)


def _missed(job: TrialJob, row: Mapping[str, Any]) -> list[float]:
    """Return by how much each threshold of an answer is missed: σ of a reward, the share of a budget of the KL."""
    units = {name: known.std for name, known in job.baseline.rewards.items()}
    return [
        max(row[f"violation_{c.name}"], 0.0)
        / (units[c.target] if c.kind == "reward" else row[f"threshold_{c.name}"])
        for c in job.config.constraints
    ]
