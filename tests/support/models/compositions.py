"""Simulated composition sweeps: outcomes at the exact composition of their weights, without sampling."""

from collections.abc import Iterable
from datetime import UTC, datetime

import pyarrow as pa

from orchestrator.frontier.problems.chosen import exact_baseline, exact_composition
from orchestrator.plan import Plan, PlannedTrial, make_job, make_plan
from orchestrator.results.schema import trial_table
from orchestrator.spec.load import parse_spec
from trainers.config import TrialJob
from trainers.types import Interval, StepRecord, TrialOutcome

SPEC = """\
name: composed
models:
  a: {mixture: {weights: [1.0], means: [[-1.0, 0.0]], covariances: [[[0.5, 0.0], [0.0, 0.5]]]}}
  b: {mixture: {weights: [1.0], means: [[-0.8, 0.2]], covariances: [[[0.5, 0.1], [0.1, 0.5]]]}}
  c: {mixture: {weights: [1.0], means: [[1.2, 0.0]], covariances: [[[0.6, 0.0], [0.0, 0.4]]]}}
objective:
  minmax_kl: [a, b, c]
  direction: reverse
methods:
  - constrained
  - weighted: {weights: equal}
seeds: [0, 1]
"""
THRESHOLD = "constraints: [{reward: {linear: {direction: [0.0, 1.0]}}, name: up, at_least: 0.6}]\n"


def plan_of(text: str = SPEC) -> Plan:
    return make_plan(parse_spec(text))


def job_of(trial: PlannedTrial) -> TrialJob:
    return make_job(trial, exact_baseline(trial.config))


def outcome_of(trial: PlannedTrial, *, excess: float = 0.01, status: str = "succeeded") -> TrialOutcome:
    """What a trial would come to that ends ``excess`` nats above the exact KLs of its weights."""
    job, config = job_of(trial), trial.config
    exact = exact_composition(config)
    assert exact is not None
    tilt: dict[str, float] = {}
    if config.method == "weighted":
        weights = dict(config.weights)
    else:
        bounds = {c.target: job.thresholds[c.name] for c in config.constraints}
        optimum = exact.optimum(bounds)
        weights, tilt = dict(optimum.weights), dict(optimum.multipliers)
    composed = exact.at(weights, tilt)
    kls = {name: kl + excess for name, kl in composed.kl.items()}
    largest = max(kls.values())
    violations = {c.name: job.thresholds[c.name] - composed.rewards[c.target] for c in config.constraints}
    ran = status == "succeeded"
    constrained = config.method == "constrained"
    return TrialOutcome(
        status=status,  # type: ignore[arg-type]
        error=None if ran else "made to fail",
        feasible=all(violation <= 0.01 for violation in violations.values()) if ran else None,
        kl=_interval(largest) if ran else None,
        kl_estimator="energy",
        rewards={name: _interval(value) for name, value in composed.rewards.items()} if ran else {},
        violations=violations if ran else {},
        multipliers=weights | tilt if ran and constrained else {},
        weights={} if constrained else weights,
        steps=20,
        wall_seconds=3.0,
        evaluation=None,
        constituents={name: _interval(kl) for name, kl in kls.items()} if ran else {},
        sampler="fkc",
        effective_samples=900.0,
        network_evaluations=192.0,
        history=(),
    )


def step_of(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        kl=1.0,
        lagrangian=0.9,
        kkt_residual=0.1,
        learning_rate=0.1,
        seconds=1.0,
        images_per_second=10.0,
        rewards={},
        violations={},
        multipliers={"a": 0.5, "b": 0.0, "c": 0.5},
        constituents={"a": 1.0, "b": 0.7, "c": 1.0},
    )


def row_of(trial: PlannedTrial, outcome: TrialOutcome, *, with_least: bool = True) -> pa.Table:
    job = job_of(trial)
    exact = exact_composition(trial.config)
    least = None
    if exact is not None and with_least:
        least = exact.least_kl({c.target: job.thresholds[c.name] for c in trial.config.constraints}).kl
    now = datetime(2025, 1, 1, tzinfo=UTC)
    return trial_table(job, outcome, started_at=now, finished_at=now, kl_least=least)


def table_of(trials: Iterable[PlannedTrial], *, with_least: bool = True) -> pa.Table:
    rows = [row_of(trial, outcome_of(trial), with_least=with_least) for trial in trials]
    return pa.concat_tables(rows, promote_options="default")


def _interval(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.02, high=mean + 0.02)
