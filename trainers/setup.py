"""From a job to the objects of its optimisation. Configuration ends here: below are plain arguments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainers import registry
from trainers.collective import Collective
from trainers.config import BaselineStatistics, RewardStatistics, TrialConfig, TrialJob
from trainers.duality.constraint import Constraint
from trainers.duality.convergence import KKTMonitor
from trainers.duality.lagrangian import KL, Lagrangian
from trainers.duality.optimizers import DualOptimizer
from trainers.duality.tilting import tilt_within_budget, tilted_start
from trainers.evaluate import evaluate
from trainers.models.mixture import ControlNetwork, MixtureModel
from trainers.primal.base import PrimalEstimator
from trainers.rewards.base import Reward, build_reward
from trainers.types import Evaluation, FloatArray

_BASELINE_SAMPLES = 32768
_BASELINE_SEED = 2_000_003
_START_LIMIT = 10.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that a trial optimises with, before its first step."""

    model: MixtureModel
    network: ControlNetwork
    rewards: Mapping[str, Reward]
    lagrangian: Lagrangian
    dual: DualOptimizer
    estimator: PrimalEstimator
    monitor: KKTMonitor
    reference_means: Mapping[str, float]
    """Mean of each reward over the reference sampler, the expectation of the paired control variate."""


def build_setup(job: TrialJob) -> Setup:
    """Build model, rewards and Lagrangian, and start the multipliers.

    Raises:
        ValueError: the config names something unknown, or does not fit together.
    """
    config = job.config
    torch.manual_seed(config.seed)
    model = MixtureModel(config.model.mixture, steps=config.sampling.steps, eta=config.sampling.eta)
    network = ControlNetwork(model, config.training.width)
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    lagrangian = build_lagrangian(job)
    reference = evaluate(
        model, None, rewards, samples=_BASELINE_SAMPLES, seed=_BASELINE_SEED, collective=Collective()
    )
    start = _first_multipliers(config, lagrangian, reference)
    dual_class: Any = registry.load(registry.DUAL_OPTIMIZERS, config.duals.kind)
    estimator_class: Any = registry.load(registry.PRIMAL_ESTIMATORS, config.training.primal)
    return Setup(
        model=model,
        network=network,
        rewards=rewards,
        lagrangian=lagrangian,
        dual=dual_class(config.duals, start),
        estimator=estimator_class(),
        monitor=KKTMonitor(config.convergence),
        reference_means={name: float(values.mean()) for name, values in reference.rewards.items()},
    )


def sampled_baseline(config: TrialConfig) -> BaselineStatistics:
    """Return mean and deviation of every reward over the reference sampler."""
    model = MixtureModel(config.model.mixture, steps=config.sampling.steps, eta=config.sampling.eta)
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    drawn = evaluate(
        model, None, rewards, samples=_BASELINE_SAMPLES, seed=_BASELINE_SEED, collective=Collective()
    )
    return BaselineStatistics(
        rewards={
            name: RewardStatistics(mean=float(values.mean()), std=float(values.std(ddof=1)))
            for name, values in drawn.rewards.items()
        },
        samples=_BASELINE_SAMPLES,
    )


def build_lagrangian(job: TrialJob) -> Lagrangian:
    """Return objective and constraints in absolute units, scaled by the pretrained model's deviations."""
    config, statistics = job.config, job.baseline.rewards
    constraints = tuple(
        Constraint(
            name=c.name,
            quantity=KL if c.kind == "kl" else c.target,
            sign=1.0 if c.kind == "kl" else -1.0,
            bound=job.thresholds[c.name],
            scale=1.0 if c.kind == "kl" else statistics[c.target].std,
        )
        for c in config.constraints
    )
    objective = KL if config.objective.kind == "kl" else config.objective.target
    return Lagrangian(
        objective=objective,
        objective_scale=1.0 if objective == KL else statistics[objective].std,
        constraints=constraints,
        fixed={name: weight / statistics[name].std for name, weight in config.weights.items()},
    )


def _first_multipliers(config: TrialConfig, lagrangian: Lagrangian, reference: Evaluation) -> FloatArray:
    """Return the first multipliers, ``[m]``, per scaled violation; none for a weighted trial."""
    if config.method == "weighted":
        return np.zeros(0)
    constraints = lagrangian.constraints
    if config.duals.start != "preview":
        return np.full(len(constraints), float(config.duals.start))
    start = np.zeros(len(constraints))
    bounded = [i for i, c in enumerate(constraints) if c.quantity != KL]
    rewards = (
        np.stack([reference.rewards[constraints[i].quantity] for i in bounded], axis=1) if bounded else None
    )
    scales = np.array([constraints[i].scale for i in bounded])
    bounds = np.array([constraints[i].bound for i in bounded]) / scales
    if lagrangian.objective == KL:
        if rewards is not None:
            start[bounded] = tilted_start(rewards / scales, bounds, limit=_START_LIMIT).multipliers
        return start
    objective = reference.rewards[lagrangian.objective] / lagrangian.objective_scale
    others = np.zeros((len(objective), 0)) if rewards is None else rewards / scales
    budgets = [i for i, c in enumerate(constraints) if c.quantity == KL]
    tightest = min(budgets, key=lambda i: constraints[i].bound)
    price, prices = tilt_within_budget(
        objective, others, bounds, constraints[tightest].bound, limit=_START_LIMIT
    )
    start[tightest], start[bounded] = price, prices
    return start
