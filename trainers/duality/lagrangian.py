"""The Lagrangian ``L(θ, λ) = f(θ) + Σ λ_i g_i(θ)`` as coefficients of KL and rewards.

Every term of the general problem (an objective and constraints that are KLs or rewards) is linear in
``KL`` and ``E[r_j]``, so the primal only needs to know ``L = a · KL − Σ_j c_j E[r_j] + const``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.duality.constraint import Constraint, scaled_violations
from trainers.types import FloatArray

KL = "kl"


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """What the primal minimises: ``kl · KL − Σ_j rewards[j] · E[r_j]``."""

    kl: float
    """Weight ``a`` of the path-wise KL."""
    rewards: Mapping[str, float]
    """Weight ``c_j`` per reward unit, never 0: a reward that is given 0 is left out, and only measured."""

    def __post_init__(self) -> None:
        """Leave out what does not act: ``0 · NaN`` is NaN, and a gradient that nobody needs takes memory."""
        acting = {name: weight for name, weight in self.rewards.items() if weight != 0}
        object.__setattr__(self, "rewards", acting)

    def price(self, floor: float = 1e-2) -> float:
        """Return ``a``, above ``floor``: a KL budget that does not bind yet would make tilts infinite."""
        return max(self.kl, floor)

    def tilt(self) -> dict[str, float]:
        """Return ``c_j / a``: the optimum of the path problem is ``q · exp(Σ_j tilt_j r_j)``; ``a`` is ``price``."""
        return {name: weight / self.price() for name, weight in self.rewards.items()}


@dataclass(frozen=True, kw_only=True)
class Lagrangian:
    """An objective with its constraints.

    ``objective`` is ``kl``, to be minimised, or the name of a reward, to be maximised in units of its scale.
    """

    objective: str
    objective_scale: float
    constraints: tuple[Constraint, ...]
    fixed: Mapping[str, float]
    """Weights of a weighted baseline, per reward unit; its constraints only observe."""

    def coefficients(self, multipliers: Sequence[float] | FloatArray) -> Coefficients:
        """Collect the terms of ``L`` for multipliers ``[m]`` per scaled violation."""
        kl = 1.0 if self.objective == KL else 0.0
        rewards = dict(self.fixed)
        if self.objective != KL and not self.fixed:
            rewards[self.objective] = 1.0 / self.objective_scale
        if self.fixed:
            return Coefficients(kl=1.0, rewards=rewards)
        for constraint, multiplier in zip(self.constraints, multipliers, strict=True):
            if constraint.quantity == KL:
                kl += float(multiplier) / constraint.scale
            else:
                share = float(multiplier) / constraint.scale
                rewards[constraint.quantity] = rewards.get(constraint.quantity, 0.0) + share
        return Coefficients(kl=kl, rewards=rewards)

    def value(self, means: Mapping[str, float], multipliers: Sequence[float] | FloatArray) -> float:
        """Return ``L`` at the means: nats for a KL objective and for weighted baselines, else scales."""
        if self.fixed:
            return means[KL] - sum(weight * means[name] for name, weight in self.fixed.items())
        objective = means[KL] if self.objective == KL else -means[self.objective] / self.objective_scale
        violations = scaled_violations(self.constraints, means)
        return float(objective + np.dot(np.asarray(multipliers, dtype=np.float64), violations))

    def violations(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return violations at the means in absolute units, by the constraint's name."""
        return {c.name: c.violation(means[c.quantity]) for c in self.constraints}

    def prices(self, multipliers: Sequence[float] | FloatArray) -> dict[str, float]:
        """Return multipliers per absolute unit, by the constraint's name.

        A reward's is the slope dKL/db in nats per reward unit, also under a reward objective (there the
        Lagrangian is divided by the multiplier of the KL budget); a KL budget's is the slope of the objective,
        in reward units per nat.
        """
        if self.fixed:
            return {}
        coefficients = self.coefficients(multipliers)
        nats = 1.0 if self.objective == KL else coefficients.kl
        prices: dict[str, float] = {}
        for constraint, multiplier in zip(self.constraints, multipliers, strict=True):
            price = float(multiplier) / constraint.scale
            if constraint.quantity == KL:
                prices[constraint.name] = price * (1.0 if self.objective == KL else self.objective_scale)
            else:
                prices[constraint.name] = price / nats if nats > 0 else float("inf")
        if self.objective != KL and self.objective not in prices:
            prices[self.objective] = 1.0 / (self.objective_scale * nats) if nats > 0 else float("inf")
        return prices
