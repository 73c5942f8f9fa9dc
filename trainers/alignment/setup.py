"""From a job to the objects of its optimisation. Configuration ends here: below are plain arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor

from trainers import registry
from trainers.alignment.boxed.frontier import Frontier, box_of
from trainers.alignment.lagrangian import build_lagrangian
from trainers.alignment.paired import Baseline, paired_with
from trainers.alignment.pretrained import image_embedder, sample_reference
from trainers.alignment.start import starts
from trainers.config import TrialConfig, TrialJob
from trainers.duality.convergence import KKTMonitor
from trainers.duality.lagrangian import Lagrangian
from trainers.duality.optimizers import DualOptimizer
from trainers.estimates import over_all_prompts
from trainers.evaluate import Embedder
from trainers.hosts.alone import Host
from trainers.models.base import Policy
from trainers.models.build import build_deployed
from trainers.primal.base import PrimalEstimator
from trainers.rewards.base import Reward, build_rewards, differentiable, must_be_same, versions
from trainers.rewards.grouped import spread
from trainers.trial_io import Sampled

if TYPE_CHECKING:
    from trainers.models.base import Conditional


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that a trial optimises with, before its first step."""

    policy: Policy
    rewards: Mapping[str, Reward]
    measured: Mapping[str, Reward]
    """What evaluations score too, and nothing is trained on."""
    lagrangian: Lagrangian
    dual: DualOptimizer
    estimator: PrimalEstimator
    monitor: KKTMonitor
    backward: Callable[[Tensor], None]
    """Adds the gradients of a loss."""
    paired: Baseline | None
    """What the means that drive the multipliers are differences to."""
    reference_means: Mapping[str, float]
    """Mean of each reward over the reference sampler, the expectation of what the duals are paired with."""
    embedder: Embedder | None
    """Of images, for the diversity figure."""
    frontier: Frontier | None = None
    """What the samples are asked for where thresholds move; the Lagrangian above is at the loosest of them."""
    deployed: Policy | None = None
    """The same adapter under the sampler that will be used; None where that is not asked for."""

    @property
    def scored(self) -> dict[str, Reward]:
        """What evaluations score."""
        return {**self.rewards, **self.measured}


def build_setup(
    job: TrialJob, device: str = "cpu", sampled: Sampled | None = None, host: Host | None = None
) -> Setup:
    """Build policy, rewards and Lagrangian, and start the multipliers; networks compute on ``device``.

    Args:
        job: Of the trial.
        device: Where networks compute.
        sampled: What the pretrained model came to on training prompts, where it was sampled before.
        host: Where it computes; by default alone.

    Raises:
        ValueError: the config names something unknown, or does not fit together.
    """
    config = job.config
    host = host or Host()
    policy = host.policy(config, device)
    rewards = build_rewards(config.rewards, config.prompts)
    must_be_same(job.baseline.versions, versions(rewards))
    centres = {name: known.mean for name, known in job.baseline.rewards.items()}
    rewards = spread(config, rewards, centres)
    lagrangian = build_lagrangian(job)
    if job.start is None:
        reference = sample_reference(config, policy, rewards)
        sampled = reference.rewards, reference.prompts
        means = {name: float(np.nanmean(values)) for name, values in reference.rewards.items()}
        start = starts(job, lagrangian, reference.rewards, reference.prompts)
    else:
        means = {name: job.baseline.rewards[name].mean for name in rewards}
        start = np.array(job.start)
    if sampled is not None:
        sampled = over_all_prompts(config, *sampled, centres=centres), sampled[1]
    box, frontier = box_of(job), None
    if box is not None:
        if sampled is None:
            drawn = sample_reference(config, policy, rewards)
            known = over_all_prompts(config, drawn.rewards, drawn.prompts, centres=centres)
        else:
            known = sampled[0]
        frontier = Frontier(job, box, lagrangian, known)
        begun = start.reshape(len(box.masses), -1).T
        cast("Conditional", policy).expect(frontier.tilts(lagrangian.coefficients(begun), len(box.masses)))
    dual_class: Any = registry.load(registry.DUAL_OPTIMIZERS, config.duals.kind)
    return Setup(
        policy=policy,
        rewards=rewards,
        measured=build_rewards(config.measured, config.prompts),
        lagrangian=lagrangian,
        dual=dual_class(config.duals, start),
        estimator=_estimator(config, lagrangian, rewards),
        monitor=KKTMonitor(
            config.convergence,
            tuple(rewards),
            frontier.units
            if frontier is not None
            else []
            if lagrangian.fixed
            else [c.unit for c in lagrangian.constraints],
        ),
        backward=host.backward,
        paired=paired_with(config, policy, rewards, *(sampled or (None, None))),
        reference_means=means,
        embedder=image_embedder(config, rewards),
        frontier=frontier,
        deployed=build_deployed(config, policy),
    )


def _estimator(config: TrialConfig, lagrangian: Lagrangian, rewards: Mapping[str, Reward]) -> PrimalEstimator:
    """Build the estimator; what a plan could not read off the source of a class is refused here."""
    name = config.training.primal
    cls: Any = registry.load(registry.PRIMAL_ESTIMATORS, name)
    trained = lagrangian.coefficients([1.0] * len(lagrangian.constraints)).rewards
    kinds = {reward.name: reward.kind for reward in config.rewards}
    for opaque in (key for key in trained if not differentiable(rewards[key])):
        if getattr(cls, "needs_gradients", True):
            raise ValueError(
                registry.needs_another(
                    opaque, kinds[opaque], name, ["log_variance", "reused_rollouts", "score_and_path"]
                )
            )
    try:
        estimator: PrimalEstimator = cls(**config.training.primal_parameters)
    except TypeError as error:
        raise ValueError(f"training.primal_parameters of {config.training.primal}: {error}") from error
    return estimator
