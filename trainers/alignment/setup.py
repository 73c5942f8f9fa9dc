"""From a job to the objects of its optimisation. Configuration ends here: below are plain arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers import registry
from trainers.alignment.kl_floor import kl_floor
from trainers.alignment.paired import PairedReference
from trainers.composition.networks.alone import sample_alone
from trainers.config import (
    EMBEDDED,
    BaselineStatistics,
    RewardConfig,
    RewardStatistics,
    TrialConfig,
    TrialJob,
)
from trainers.duality.constraint import Constraint
from trainers.duality.convergence import KKTMonitor
from trainers.duality.lagrangian import KL, Lagrangian
from trainers.duality.optimizers import DualOptimizer
from trainers.duality.tilting import tilt_within_budget, tilted_start
from trainers.evaluate import Embedder, diversity, evaluate
from trainers.models.base import Policy
from trainers.models.build import build_policy
from trainers.primal.base import PrimalEstimator
from trainers.rewards.base import Reward, build_reward
from trainers.types import Evaluation, FloatArray
from trainers.workers.collective import Collective, Shard

_BASELINE_SEED = 2_000_003
_START_LIMIT = 10.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that a trial optimises with, before its first step."""

    policy: Policy
    rewards: Mapping[str, Reward]
    lagrangian: Lagrangian
    dual: DualOptimizer
    estimator: PrimalEstimator
    monitor: KKTMonitor
    paired: PairedReference
    reference_means: Mapping[str, float]
    """Mean of each reward over the reference sampler, the expectation of the paired control variate."""
    embedder: Embedder | None
    """Of images, for the diversity figure."""


def build_setup(job: TrialJob, device: str = "cpu") -> Setup:
    """Build policy, rewards and Lagrangian, and start the multipliers; networks compute on ``device``.

    Raises:
        ValueError: the config names something unknown, or does not fit together.
    """
    config = job.config
    policy = build_policy(config, device)
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    lagrangian = build_lagrangian(job)
    if job.start is None:
        reference = sample_reference(config, policy, rewards)
        means = {name: float(values.mean()) for name, values in reference.rewards.items()}
        start = first_multipliers(config, lagrangian, reference.rewards, reference.prompts)
    else:
        means = {name: job.baseline.rewards[name].mean for name in rewards}
        start = np.array(job.start)
    dual_class: Any = registry.load(registry.DUAL_OPTIMIZERS, config.duals.kind)
    return Setup(
        policy=policy,
        rewards=rewards,
        lagrangian=lagrangian,
        dual=dual_class(config.duals, start),
        estimator=_estimator(config),
        monitor=KKTMonitor(
            config.convergence,
            tuple(rewards),
            [] if lagrangian.fixed else [c.unit for c in lagrangian.constraints],
        ),
        paired=PairedReference(config, policy, rewards),
        reference_means=means,
        embedder=image_embedder(config, rewards),
    )


def _estimator(config: TrialConfig) -> PrimalEstimator:
    cls: Any = registry.load(registry.PRIMAL_ESTIMATORS, config.training.primal)
    try:
        estimator: PrimalEstimator = cls(**config.training.primal_parameters)
    except TypeError as error:
        raise ValueError(f"training.primal_parameters of {config.training.primal}: {error}") from error
    return estimator


def image_embedder(config: TrialConfig, rewards: Mapping[str, Reward]) -> Embedder | None:
    """Return what embeds images: a reward's own CLIP, else the shipped one beside the shipped pipeline."""
    for reward in rewards.values():
        embed: Embedder | None = getattr(reward, "embed", None)
        if embed is not None:
            return embed
    if config.model.pretrained != EMBEDDED:
        return None
    shipped: Any = build_reward(RewardConfig(name="clip", kind="clip_score", parameters={"model": EMBEDDED}))
    found: Embedder = shipped.embed
    return found


def sample_reference(
    config: TrialConfig,
    policy: Policy,
    rewards: Mapping[str, Reward],
    *,
    held_out: bool = False,
    embedder: Embedder | None = None,
    share: Collective | Shard | None = None,
) -> Evaluation:
    """Sample the pretrained model on the training prompts, or on the held-out ones, and score it.

    The held-out samples begin with those of every evaluation.
    """
    train = None if config.prompts is None or held_out else config.prompts.in_turn("train", _BASELINE_SEED)
    return evaluate(
        policy,
        rewards,
        samples=config.evaluation.baseline_images,
        seed=config.evaluation.seed if held_out else _BASELINE_SEED,
        collective=share or Collective(),
        reference=True,
        prompts=train,
        embedder=embedder,
        batch=config.evaluation.batch,
    )


def sample_pretrained(
    config: TrialConfig, share: Collective | Shard | None = None, device: str = "cpu"
) -> dict[str, Evaluation]:
    """Return samples of the pretrained model for ``train`` and ``evaluate``, those of this share; zeros elsewhere.

    Of a composition there are more sets: ``composition.networks.alone``.

    Raises:
        ValueError: model or rewards cannot be used; says why.
    """
    if config.model.composition is not None:
        return sample_alone(config, share or Collective(), device)
    policy = build_policy(config, device)
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    embedder = image_embedder(config, rewards)
    return {
        name: sample_reference(
            config, policy, rewards, held_out=name == "evaluate", embedder=embedder, share=share
        )
        for name in ("train", "evaluate")
    }


def measured_floor(config: TrialConfig, device: str = "cpu") -> float | None:
    """Return the floor of the KL, nats; None where no adapter is trained.

    Raises:
        ValueError: the model cannot be used; says why.
        OutOfMemory: the memory does not hold a single sample.
    """
    if config.model.pretrained is None:
        return None
    return kl_floor(build_policy(config, device), config.evaluation.seed)


def statistics(samples: Mapping[str, Evaluation], floor: float | None = None) -> BaselineStatistics:
    """Return what thresholds refer to, from the samples of the pretrained model, and the floor of the KL."""
    drawn = samples["train"]
    return BaselineStatistics(
        rewards={
            name: RewardStatistics(mean=float(values.mean()), std=float(values.std(ddof=1)))
            for name, values in drawn.rewards.items()
        },
        samples=len(drawn.kl),
        diversity=diversity(samples["evaluate"]),
        kl_floor=floor,
    )


def start_of(
    job: TrialJob, train: Mapping[str, FloatArray], prompts: Sequence[str] | None = None
) -> TrialJob:
    """Return the job with its first multipliers.

    Args:
        job: To be started.
        train: Rewards of the pretrained model on training prompts, ``[n]`` each.
        prompts: Of these samples, ``[n]``; None for a model without prompts.
    """
    start = first_multipliers(job.config, build_lagrangian(job), train, prompts)
    return job.model_copy(update={"start": tuple(start.tolist())})


def build_lagrangian(job: TrialJob) -> Lagrangian:
    """Return objective and constraints in absolute units, scaled by the pretrained model's deviations."""
    config, known = job.config, job.baseline.rewards
    constraints = tuple(
        Constraint(
            name=c.name,
            quantity=KL if c.kind == "kl" else c.target,
            sign=1.0 if c.kind == "kl" else -1.0,
            bound=job.thresholds[c.name],
            scale=1.0 if c.kind == "kl" else known[c.target].std,
            margin=0.0 if c.kind == "kl" else config.duals.margin,
            allowance=config.evaluation.allowance(
                c.kind, bound=job.thresholds[c.name], std=1.0 if c.kind == "kl" else known[c.target].std
            ),
        )
        for c in config.constraints
    )
    objective = KL if config.objective.kind == "kl" else config.objective.target
    return Lagrangian(
        objective=objective,
        objective_scale=1.0 if objective == KL else known[objective].std,
        constraints=constraints,
        fixed={name: weight / known[name].std for name, weight in config.weights.items()},
    )


def constant_start(config: TrialConfig, lagrangian: Lagrangian) -> FloatArray:
    """Return the number that the config writes as every first multiplier; none for a weighted trial."""
    if config.method == "weighted":
        return np.zeros(0)
    number = 0.0 if config.duals.start == "preview" else config.duals.start
    return np.full(len(lagrangian.constraints), float(number))


def first_multipliers(
    config: TrialConfig,
    lagrangian: Lagrangian,
    reference: Mapping[str, FloatArray],
    prompts: Sequence[str] | None,
) -> FloatArray:
    """Return the first multipliers, ``[m]``, per scaled violation; none for a weighted trial."""
    if config.method == "weighted" or config.duals.start != "preview":
        return constant_start(config, lagrangian)
    constraints = lagrangian.constraints
    start = np.zeros(len(constraints))
    bounded = [i for i, c in enumerate(constraints) if c.quantity != KL]
    rewards = np.stack([reference[constraints[i].quantity] for i in bounded], axis=1) if bounded else None
    scales = np.array([constraints[i].scale for i in bounded])
    margins = np.array([constraints[i].margin for i in bounded])
    bounds = np.array([constraints[i].bound for i in bounded]) / scales + margins
    if lagrangian.objective == KL:
        if rewards is not None:
            found = tilted_start(rewards / scales, bounds, limit=_START_LIMIT, prompts=prompts)
            start[bounded] = found.multipliers
        return start
    objective = reference[lagrangian.objective] / lagrangian.objective_scale
    others = np.zeros((len(objective), 0)) if rewards is None else rewards / scales
    budgets = [i for i, c in enumerate(constraints) if c.quantity == KL]
    tightest = min(budgets, key=lambda i: constraints[i].bound)
    price, prices = tilt_within_budget(
        objective, others, bounds, constraints[tightest].bound, limit=_START_LIMIT, prompts=prompts
    )
    start[tightest], start[bounded] = price, prices
    return start
