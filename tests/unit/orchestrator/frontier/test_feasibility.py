"""Feasible in training is feasible in the analysis: one rule, whose tolerance scales with what is bounded."""

from datetime import UTC, datetime

import numpy as np
import pytest

from orchestrator.frontier.comparison.comparison import compare
from orchestrator.frontier.trials import Trials
from orchestrator.results.schema import trial_table
from trainers.alignment.lagrangian import build_lagrangian
from trainers.evaluate import estimate, feasible, mean_interval
from trainers.testing import gaussian_job
from trainers.types import Evaluation, TrialOutcome

COUNT = 512


def evaluation(mean: float, error: float, reward: float = 1.0) -> Evaluation:
    """Samples whose KL has exactly this mean and standard error."""
    values = np.random.default_rng(0).normal(size=COUNT)
    values = (values - values.mean()) / values.std(ddof=1)
    return Evaluation(
        kl=mean + error * np.sqrt(COUNT) * values,
        rewards={"x": reward + 0.01 * values},
        seeds=np.arange(COUNT),
    )


@pytest.mark.parametrize(
    ("budget", "kl", "error", "meets"),
    [
        (0.02, 0.0205, 0.0, True),
        (0.02, 0.0215, 0.0, False),  # 7.5 % too much, though but 0.0015 nats
        (0.02, 0.065, 0.0, False),  # within 0.05 nats, and more than three times the budget
        (0.02, 0.0201, 0.001, False),  # the bound, not the estimate
        (2.0, 2.09, 0.0, True),
        (2.0, 2.09, 0.02, False),
        (20.0, 20.9, 0.0, True),
        (20.0, 21.1, 0.0, False),
    ],
)
def test_a_budget_is_kept_to_a_share_of_itself(budget: float, kl: float, error: float, meets: bool) -> None:
    job = gaussian_job({"kl": budget}, objective="x")
    constraints = build_lagrangian(job).constraints
    sample = evaluation(kl, error)
    assert feasible(sample, constraints) is meets
    now = datetime(2025, 1, 1, tzinfo=UTC)
    outcome = TrialOutcome(
        status="succeeded",
        error=None,
        feasible=meets,
        kl=mean_interval(sample, "kl"),
        kl_estimator="path",
        rewards={"x": mean_interval(sample, "x")},
        violations={"kl": estimate(sample, "kl").mean - budget},
        multipliers={"kl": 1.0},
        weights={},
        steps=1,
        wall_seconds=1.0,
        evaluation=sample,
        history=(),
    )
    row = trial_table(job, outcome, started_at=now, finished_at=now)
    (cell,), _ = compare(Trials.of(row, job.config), job.baseline)
    assert cell.met is meets, "the same rule in the analysis"


@pytest.mark.parametrize("std", [1e-4, 1.0, 300.0])
def test_a_threshold_is_met_to_a_share_of_a_deviation(std: float) -> None:
    job = gaussian_job({"x": 1.0})
    known = job.baseline.model_copy(
        update={"rewards": {"x": job.baseline.rewards["x"].model_copy(update={"std": std})}}
    )
    (constraint,) = build_lagrangian(job.model_copy(update={"baseline": known})).constraints
    assert constraint.allowance == pytest.approx(0.05 * std)
