"""Simulated sweeps of composed networks: outcomes that are written down, not sampled."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import pyarrow as pa

from orchestrator.plan import Plan, PlannedTrial, make_job, make_plan
from orchestrator.results.schema import trial_table
from orchestrator.spec.load import parse_spec
from support.models.networks import ADAPTERS
from trainers.config import BaselineStatistics, RewardStatistics, TrialJob
from trainers.types import Interval, TrialOutcome

SPEC = ADAPTERS + "  - weighted: {weights: equal, sampler: merged}\n"
KLS = {
    "fkc": {"vivid": 1.0, "bright": 0.98, "crisp": 1.02},
    "merged": {"vivid": 2.0, "bright": 1.0, "crisp": 3.0},
}
RETAINED = {"fkc": {"vivid": 0.9, "bright": 0.8}, "merged": {"vivid": 0.5, "bright": -0.2}}


def plan_of(text: str = SPEC) -> Plan:
    return make_plan(parse_spec(text))


def baseline_of(plan: Plan) -> BaselineStatistics:
    names = [reward.name for reward in plan.trials[0].config.rewards]
    return BaselineStatistics(rewards={n: RewardStatistics(mean=0.4, std=0.1) for n in names}, samples=32)


def job_of(trial: PlannedTrial) -> TrialJob:
    names = [reward.name for reward in trial.config.rewards]
    stated = {name: RewardStatistics(mean=0.4, std=0.1) for name in names}
    return make_job(trial, BaselineStatistics(rewards=stated, samples=32))


def outcome_of(trial: PlannedTrial) -> TrialOutcome:
    """What a trial would come to: constrained at KLs of about 1, equal weights half a nat above."""
    config = trial.config
    composition = config.model.composition
    assert composition is not None
    names = [model.name for model in composition.models]
    baseline = composition.sampler in {"merged", "joint"}
    kind, extra = ("merged", 0.0) if baseline else ("fkc", 0.5 * (config.method == "weighted"))
    kls = {name: KLS[kind].get(name, 1.0) + extra for name in names}
    weights = dict.fromkeys(names, 1.0 / len(names))
    judged = {model.name for model in composition.models if model.rewards and model.prompt is None}
    rewards = {reward.name: 0.5 for reward in config.rewards}
    distilled = {f"kl_{name}": 1.5 for name in names} | {f"reward_{name}": 0.45 for name in rewards}
    return TrialOutcome(
        status="succeeded",
        error=None,
        feasible=True,
        kl=_interval(max(kls.values())),
        kl_estimator="path",
        rewards=_intervals(rewards),
        violations={},
        multipliers=weights,
        weights={} if config.method == "constrained" else weights,
        steps=12,
        wall_seconds=3.0,
        evaluation=None,
        constituents=_intervals(kls),
        sampler=composition.sampler if composition.direction == "reverse" else "exact",
        retention=_intervals({name: RETAINED[kind][name] for name in judged & RETAINED[kind].keys()}),
        pointwise=_intervals({name: 0.7 * kl for name, kl in kls.items()}),
        distilled=_intervals(distilled) if composition.distillation is not None else {},
        history=(),
    )


def row_of(trial: PlannedTrial) -> pa.Table:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    return trial_table(job_of(trial), outcome_of(trial), started_at=now, finished_at=now)


def table_of(trials: Iterable[PlannedTrial]) -> pa.Table:
    return pa.concat_tables([row_of(trial) for trial in trials], promote_options="default")


def _intervals(means: Mapping[str, float]) -> dict[str, Interval]:
    return {name: _interval(mean) for name, mean in means.items()}


def _interval(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.02, high=mean + 0.02)
