"""Sweeps whose trials end at once at their exact optima: what a search does with them is its own doing."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.execution.trials.trial import failed
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.plan import Plan, PlannedTrial, base_config, make_job, make_plan, resolve_thresholds
from orchestrator.results.schema import trial_table
from orchestrator.search.base import Search, SearchContext
from orchestrator.search.several import build_search
from orchestrator.spec.load import parse_spec
from orchestrator.spec.records.models import SweepSpec
from trainers.types import Interval, TrialOutcome

SPEC = """
name: searched
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {range: [0.05, 0.6]}, unit: sigma}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: {range: [+10%, +55%]}, unit: relative}
methods:
  - constrained
search: {kind: certified, tolerance: 0.05, max_trials: 16}
seeds: [0]
training: {steps: 100}
"""
GRID = "  - weighted: {weights: equal, scale: {grid: [0.2, 0.6]}}\n"
TPE = "  - weighted: {search: {sampler: tpe, trials: 6, low: 0.05, high: 4.0}}\n"
RANDOM = "  - weighted: {search: {sampler: random, trials: 4, low: 0.04, high: 4.0}}\n"

Row = dict[str, Any]
_TRAINED: dict[str, Row] = {}
"""Rows of trials that have been at their optima, by all that they depend on: sweeps that crash train the same again."""
Build = Callable[[SearchContext], Search]


def spec_of(*methods: str, old: str = "", new: str = "") -> SweepSpec:
    text = SPEC.replace("  - constrained\n", "  - constrained\n" + "".join(methods))
    assert old in text
    return parse_spec(text.replace(old, new) if old else text)


@dataclass
class Sweep:
    """A sweep whose trials end at once, at their exact optima; ``plan`` and ``rows`` are all that a crash leaves."""

    spec: SweepSpec
    directory: Path | None
    fails: Callable[[PlannedTrial], bool] = lambda _: False
    plan: Plan = field(init=False)
    again: bool = False
    """Whether finished trials may be trained further."""
    rows: dict[str, Row] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    """Ids in the order of their start, after a crash again."""

    def __post_init__(self) -> None:
        """Plan it."""
        self.plan = make_plan(self.spec)
        config = base_config(self.spec)
        assert config.model.mixture is not None
        self.problem = ExactProblem(config.model.mixture, config.rewards)
        self.baseline = self.problem.baseline()

    def context(self) -> SearchContext:
        """What a driver reads from the sweep's files; the plan goes through its document."""
        plan = Plan.from_json(json.loads(json.dumps(self.plan.to_json(baseline=self.baseline))))
        pretrained = {name: (known.mean, 0.0) for name, known in self.baseline.rewards.items()}
        return SearchContext(
            spec=self.spec,
            plan=plan,
            baseline=self.baseline,
            finished=dict(self.rows),
            pretrained=pretrained,
            directory=self.directory,
        )

    def trained(self, trial: PlannedTrial) -> Row:
        """The row of a trial that has reached its optimum."""
        job = make_job(trial, self.baseline)
        now = datetime(2025, 1, 1, tzinfo=UTC)
        if self.fails(trial):
            return trial_table(job, failed("made to fail"), started_at=now, finished_at=now).to_pylist()[0]
        if (known := _TRAINED.get(job.model_dump_json())) is not None:
            return dict(known)
        stds = {name: known.std for name, known in self.baseline.rewards.items()}
        if trial.config.method == "weighted":
            weights = {name: weight / stds[name] for name, weight in trial.config.weights.items()}
            tilt, prices = weights, {}
        else:
            optimum = self.problem.least_kl(job.thresholds)
            assert optimum.reachable
            weights, tilt, prices = {}, dict(optimum.tilt), dict(optimum.multipliers)
        rewards = self.problem.tilted_means(tilt)
        kl = sum(tilt[name] * rewards[name] for name in rewards) - self.problem.log_partition(tilt)
        violations = {name: bound - rewards[name] for name, bound in job.thresholds.items()}
        outcome = TrialOutcome(
            status="succeeded",
            error=None,
            feasible=all(violation <= 1e-6 for violation in violations.values()),
            kl=Interval(mean=kl, low=kl, high=kl),
            kl_estimator="path",
            rewards={name: Interval(mean=value, low=value, high=value) for name, value in rewards.items()},
            violations=violations,
            multipliers=prices,
            weights=weights,
            steps=1,
            wall_seconds=1.0,
            evaluation=None,
            history=(),
        )
        row = trial_table(job, outcome, started_at=now, finished_at=now).to_pylist()[0]
        return dict(_TRAINED.setdefault(job.model_dump_json(), row))

    def drive(self, build: Build = build_search, *, at_once: int = 1, most: int | None = None) -> Search:
        """Run to the end, or until ``most`` trials have finished in this run; then the driver is dead."""
        search = build(self.context())
        running: list[PlannedTrial] = []
        finished = 0
        while True:
            while len(running) < at_once and (trial := search.propose()) is not None:
                assert self.again or trial.trial_id not in self.rows, "a finished trial is not run again"
                assert trial.trial_id not in [other.trial_id for other in running]
                if trial.trial_id not in self.trials:
                    self.plan = self.plan.with_trial(trial)
                self.started.append(trial.trial_id)
                running.append(trial)
            if finished == most:
                return search
            if not running:
                assert search.exhausted, (
                    "a search that proposes nothing while nothing runs would wait for ever"
                )
                return search
            trial = running.pop(0)
            self.rows[trial.trial_id] = self.trained(trial)
            search.observe(trial, self.rows[trial.trial_id])
            finished += 1

    @property
    def trials(self) -> dict[str, PlannedTrial]:
        return {trial.trial_id: trial for trial in self.plan.trials}

    def of(self, method: str) -> list[PlannedTrial]:
        """Trials of a method, in the order of their first start."""
        found = self.trials
        return [found[name] for name in dict.fromkeys(self.started) if found[name].config.method == method]

    def thresholds(self) -> np.ndarray:
        return np.array(
            [
                list(resolve_thresholds(trial.config, self.baseline).values())
                for trial in self.of("constrained")
            ]
        )
