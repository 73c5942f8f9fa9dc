"""Constraints with the sign set once.

A violation is ``g = b − E[r]`` for a reward and ``g = KL − budget`` for a KL; a constraint is met iff
``g <= 0``. Inside the optimisation every violation is divided by its scale (the pretrained model's standard
deviation for a reward, 1 for a KL in nats), so that multipliers of different rewards are comparable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.duality.covariance import RewardCovariance
from trainers.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """One constraint in absolute units."""

    name: str
    quantity: str
    """The reward's name, or ``kl``."""
    sign: float
    """+1 bounds the quantity from above (a KL), −1 from below (a reward)."""
    bound: float
    """Reward units, or nats."""
    scale: float
    """Units of the quantity per unit of scaled violation."""
    margin: float = 0.0
    """How far past the bound training aims, in units of the scale."""
    allowance: float = 0.0
    """How far above 0 the 95 % bound of its violation may lie where it still counts as met, units of the quantity."""

    @property
    def unit(self) -> float:
        """What a tolerance is a share of, in scaled violations: 1 (a σ) for a reward, the budget for a KL."""
        return self.bound / self.scale if self.sign > 0 else 1.0

    def violation(self, value: float) -> float:
        """Return ``g`` in units of the quantity for its mean ``value``; met iff ``g <= 0``."""
        return self.sign * (value - self.bound)


def scaled_violations(constraints: Sequence[Constraint], means: Mapping[str, float]) -> FloatArray:
    """Return ``g_i / scale_i + margin_i``, ``[m]``, for the means of all quantities: what drives the multipliers."""
    return np.array(
        [c.violation(means[c.quantity]) / c.scale + c.margin for c in constraints], dtype=np.float64
    )


def scaled_covariance(constraints: Sequence[Constraint], known: RewardCovariance) -> FloatArray:
    """Return the covariance ``[m, m]`` of what scaled constraints bound; 1 for a KL, and with all else 0."""
    found = np.eye(len(constraints))
    rewards = [place for place, constraint in enumerate(constraints) if constraint.quantity in known.names]
    names = [constraints[place].quantity for place in rewards]
    scales = np.array([constraints[place].scale for place in rewards])
    found[np.ix_(rewards, rewards)] = known.between(names, names) / np.outer(scales, scales)
    return found
