"""Held-out evaluation: fixed noise, confidence intervals, feasibility."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from trainers.collective import Collective
from trainers.diffusion.sampling import rollout
from trainers.duality.constraint import Constraint
from trainers.duality.lagrangian import KL
from trainers.models.mixture import ControlNetwork, MixtureModel, antithetic_noise
from trainers.rewards.base import Reward
from trainers.types import Evaluation, FloatArray, Interval

DEFAULT_SAMPLES = 16384
_CHUNK = 4096
_TWO_SIDED_95 = 1.959964
_ONE_SIDED_95 = 1.644854


@torch.no_grad()
def evaluate(
    model: MixtureModel,
    network: ControlNetwork | None,
    rewards: Mapping[str, Reward],
    *,
    samples: int,
    seed: int,
    collective: Collective,
) -> Evaluation:
    """Sample the policy (or the reference, without a network) and score it.

    Sample ``i`` is a function of the seed and ``i`` alone, whatever the number of workers and of samples.

    Args:
        model: The frozen model.
        network: The trained residual, or None.
        rewards: By name.
        samples: How many.
        seed: Of the evaluation noise; chunk ``k`` of 4096 samples uses ``seed + k``.
        collective: The workers that share the sampling.
    """
    chunks = -(-samples // _CHUNK)
    mine = torch.zeros(chunks, 1 + len(rewards), _CHUNK)
    for chunk in range(collective.rank, chunks, collective.world_size):
        count = min(_CHUNK, samples - chunk * _CHUNK)
        drawn = rollout(model, network, antithetic_noise(model, _CHUNK, seed + chunk, last=count))
        columns = [drawn.path_kl, *(reward(drawn.samples) for reward in rewards.values())]
        mine[chunk, :, :count] = torch.stack([c.float() for c in columns])
    table = collective.sum(mine).transpose(0, 1).flatten(1)[:, :samples].double().numpy()
    return Evaluation(
        kl=table[0],
        rewards=dict(zip(rewards, table[1:], strict=True)),
        seeds=seed + np.arange(samples, dtype=np.int64),
    )


def interval(values: FloatArray) -> Interval:
    """Return the mean of ``[n]`` with its normal two-sided 95 % interval; unbounded for one value."""
    mean = float(values.mean())
    half = _TWO_SIDED_95 * _standard_error(values)
    return Interval(mean=mean, low=mean - half, high=mean + half)


def feasible(evaluation: Evaluation, constraints: Sequence[Constraint], tolerance: float) -> bool:
    """Whether the one-sided 95 % bound of every violation is within ``tolerance`` of its scale."""
    for constraint in constraints:
        values = quantity(evaluation, constraint.quantity)
        bound = constraint.violation(float(values.mean())) + _ONE_SIDED_95 * _standard_error(values)
        if not bound <= tolerance * constraint.scale:
            return False
    return True


def quantity(evaluation: Evaluation, name: str) -> FloatArray:
    """Return the values ``[n]`` of a reward, or of the KL."""
    return evaluation.kl if name == KL else evaluation.rewards[name]


def _standard_error(values: FloatArray) -> float:
    """Return the standard error of the mean, counting antithetic neighbours as one draw each."""
    if len(values) < 4:
        return float("inf")
    pairs = values[: len(values) // 2 * 2].reshape(-1, 2).mean(axis=1)
    return float(pairs.std(ddof=1) / np.sqrt(len(pairs)))
