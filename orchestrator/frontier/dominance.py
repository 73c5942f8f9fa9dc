"""Which points are non-dominated. Directions are set once, here: inside, everything is minimised."""

from collections.abc import Mapping

import moocore
import numpy as np
from numpy.typing import NDArray

from trainers.config import TrialConfig

FloatArray = NDArray[np.float64]


def sought_rewards(config: TrialConfig) -> tuple[str, ...]:
    """Rewards that a sweep wants more of: those under a constraint, or the objective, in spec order."""
    sought = {constraint.target for constraint in config.constraints if constraint.kind == "reward"}
    if config.objective.kind == "reward":
        sought.add(config.objective.target)
    return tuple(reward.name for reward in config.rewards if reward.name in sought)


def to_minimise(kl: FloatArray, rewards: Mapping[str, FloatArray]) -> FloatArray:
    """Points ``[n, 1 + m]`` to be minimised in every coordinate: KL, and every reward negated.

    Args:
        kl: ``[n]``, nats.
        rewards: ``[n]`` each, higher is better.
    """
    return np.column_stack([kl, *(-values for values in rewards.values())])


def non_dominated(points: FloatArray) -> NDArray[np.bool_]:
    """Rows that no other row beats: ``[n]``.

    Args:
        points: ``[n, m]``, minimised. A row with a NaN is never in the set. Of equal rows all are in it.
    """
    whole = ~np.isnan(points).any(axis=1)
    result = np.zeros(len(points), dtype=np.bool_)
    if whole.any():
        result[whole] = moocore.is_nondominated(points[whole], keep_weakly=True)
    return result
