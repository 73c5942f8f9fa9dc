"""Simulated sweeps: trials that scatter around the exact optimum of a mixture problem, without training."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product

import jsonschema
import numpy as np
import pyarrow as pa
import pytest

from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.results.schema import trial_table
from orchestrator.spec.load import json_schema
from trainers.config import (
    BaselineStatistics,
    ConstraintConfig,
    ConvergenceConfig,
    DualConfig,
    EvaluationConfig,
    MixtureConfig,
    ModelConfig,
    ObjectiveConfig,
    RewardConfig,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
    TrialJob,
)
from trainers.types import Interval, TrialOutcome

MIXTURE = MixtureConfig(
    weights=(0.5, 0.5),
    means=((-1.0, 0.0), (1.5, 0.5)),
    covariances=(((0.3, 0.0), (0.0, 0.3)), ((0.4, 0.1), (0.1, 0.2))),
)
REWARDS = (
    RewardConfig(name="right", kind="linear", parameters={"direction": (1.0, 0.0)}),
    RewardConfig(name="near", kind="quadratic", parameters={"center": (1.0, 1.0), "scale": 0.5}),
)


@dataclass(kw_only=True)
class SimulatedSweep:
    """Makes trials of one problem and keeps their rows."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    excess: float = 1.06
    """KL of a trial divided by the exact one."""
    noise: float = 0.003
    """Standard error of the rewards, σ."""
    rows: list[pa.Table] = field(default_factory=list)
    exact: ExactProblem = field(default_factory=lambda: ExactProblem(MIXTURE, REWARDS))
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def baseline(self) -> BaselineStatistics:
        return self.exact.baseline()

    def config(
        self, method: str, thresholds: Mapping[str, float], weights: Mapping[str, float], seed: int
    ) -> TrialConfig:
        constraints = [
            ConstraintConfig(
                name=name,
                kind="kl" if name == "kl" else "reward",
                target="pretrained" if name == "kl" else name,
                bound=bound,
                unit="nats" if name == "kl" else "absolute",
            )
            for name, bound in thresholds.items()
        ]
        return TrialConfig(
            model=ModelConfig(mixture=MIXTURE),
            sampling=SamplingConfig(),
            rewards=REWARDS,
            objective=self.objective,
            constraints=tuple(constraints),
            method=method,  # type: ignore[arg-type]
            weights=dict(weights),
            seed=seed,
            training=TrainingConfig(),
            duals=DualConfig(),
            convergence=ConvergenceConfig(),
            evaluation=EvaluationConfig(),
        )

    def add(
        self,
        method: str,
        thresholds: Mapping[str, float],
        *,
        kl: float,
        rewards: Mapping[str, float],
        weights: Mapping[str, float] | None = None,
        multipliers: Mapping[str, float] | None = None,
        seed: int = 0,
        status: str = "succeeded",
        with_least: bool = True,
    ) -> None:
        """One trial; ``weights`` are per σ, as in a spec."""
        stds = {name: statistics.std for name, statistics in self.baseline.rewards.items()}
        means = {
            name: value + float(self.rng.normal()) * self.noise * stds[name]
            for name, value in rewards.items()
        }
        kl_error = 0.01 * kl + 1e-4
        violations = {
            name: kl - bound if name == "kl" else bound - means[name] for name, bound in thresholds.items()
        }
        feasible = all(
            violation + 1.645 * (kl_error if name == "kl" else self.noise * stds[name])
            <= 0.05 * (1.0 if name == "kl" else stds[name])
            for name, violation in violations.items()
        )
        ran = status == "succeeded"
        outcome = TrialOutcome(
            status=status,  # type: ignore[arg-type]
            error=None if ran else "made to fail",
            feasible=feasible if ran else None,
            kl=Interval(mean=kl, low=kl - 1.96 * kl_error, high=kl + 1.96 * kl_error) if ran else None,
            kl_estimator="path",
            rewards={
                name: Interval(
                    mean=mean,
                    low=mean - 1.96 * self.noise * stds[name],
                    high=mean + 1.96 * self.noise * stds[name],
                )
                for name, mean in means.items()
            }
            if ran
            else {},
            violations=violations if ran else {},
            multipliers=dict(multipliers or {}),
            weights={name: value / stds[name] for name, value in (weights or {}).items()},
            steps=400,
            wall_seconds=30.0,
            evaluation=None,
            history=(),
        )
        key = repr(
            (method, sorted(thresholds.items()), sorted((weights or {}).items()), seed, len(self.rows))
        )
        job = TrialJob(
            trial_id=hashlib.sha256(key.encode()).hexdigest()[:12],
            config=self.config(method, thresholds, weights or {}, seed),
            baseline=self.baseline,
            thresholds=dict(thresholds),
        )
        now = datetime(2025, 1, 1, tzinfo=UTC)
        least = self.exact.least_kl(means).kl if ran and with_least else None
        self.rows.append(
            trial_table(job, outcome, started_at=now, finished_at=now, gpu_seconds=0.0, kl_least=least)
        )

    def constrained(self, thresholds: Mapping[str, float], seed: int = 0, *, shift: float = 0.0) -> None:
        """A constrained trial near the exact optimum; ``shift`` in σ lifts or lowers its rewards."""
        moved = {name: bound + shift * self.baseline.rewards[name].std for name, bound in thresholds.items()}
        optimum = self.exact.least_kl(moved)
        jitter = 1.0 + 0.02 * float(self.rng.normal())
        self.add(
            "constrained",
            thresholds,
            kl=optimum.kl * self.excess * jitter,
            rewards=optimum.rewards,
            multipliers={name: value * self.excess for name, value in optimum.multipliers.items()},
            seed=seed,
        )

    def weighted(self, weights: Mapping[str, float], loosest: Mapping[str, float], seed: int = 0) -> None:
        """A weighted trial near its exact optimum; weights per σ."""
        tilt = {name: value / self.baseline.rewards[name].std for name, value in weights.items()}
        rewards = self.exact.tilted_means(tilt)
        kl = sum(tilt[name] * rewards[name] for name in tilt) - self.exact.log_partition(tilt)
        jitter = 1.0 + 0.02 * float(self.rng.normal())
        self.add(
            "weighted", loosest, kl=kl * self.excess * jitter, rewards=rewards, weights=weights, seed=seed
        )

    def grid(
        self,
        sigmas: Sequence[float] = (0.2, 0.5, 0.8),
        scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
        seeds: Sequence[int] = (0, 1),
    ) -> "SimulatedSweep":
        """Every combination of thresholds, written in σ above the pretrained mean, and equal weights."""
        levels = {
            name: [statistics.mean + sigma * statistics.std for sigma in sigmas]
            for name, statistics in self.baseline.rewards.items()
        }
        for seed in seeds:
            for combination in product(*levels.values()):
                self.constrained(dict(zip(levels, combination, strict=True)), seed)
            loosest = {name: min(values) for name, values in levels.items()}
            for scale in scales:
                self.weighted(dict.fromkeys(levels, scale), loosest, seed)
        return self

    @property
    def trials(self) -> pa.Table:
        """The rows so far."""
        return pa.concat_tables(self.rows, promote_options="default")


@pytest.fixture
def simulate() -> Callable[..., SimulatedSweep]:
    return SimulatedSweep


@pytest.fixture(scope="session")
def validator() -> jsonschema.Draft202012Validator:
    """Takes what the schema of a spec takes; that it is a schema at all is seen here, once: that takes seconds."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)
