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
Amount = float | FloatArray
"""A number for all samples of a batch, or one for each, ``[batch]``."""


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """What the primal minimises: ``kl · KL − Σ_j rewards[j] · E[r_j]``, or the mean of that over its samples."""

    kl: Amount
    """Weight ``a`` of the path-wise KL."""
    rewards: Mapping[str, Amount]
    """Weight ``c_j`` per reward unit, never 0: a reward that is given 0 is left out, and only measured."""
    log_partition: FloatArray | None = None
    """``[batch]``, nats: about ``log E_q exp(Σ_j tilt_j r_j)`` at the tilt of each sample, where they differ. Nothing
    in expectation depends on it; the nearer, the less noise an estimator has that takes it for a baseline."""

    def __post_init__(self) -> None:
        """Leave out what does not act: ``0 · NaN`` is NaN, and a gradient that nobody needs takes memory."""
        acting = {name: weight for name, weight in self.rewards.items() if np.any(weight != 0)}
        object.__setattr__(self, "rewards", acting)

    def price(self, floor: float = 1e-2) -> Amount:
        """Return ``a``, above ``floor``: a KL budget that does not bind yet would make tilts infinite."""
        return np.maximum(self.kl, floor) if isinstance(self.kl, np.ndarray) else max(self.kl, floor)

    def tilt(self) -> dict[str, Amount]:
        """Return ``c_j / a``: the optimum of the path problem is ``q · exp(Σ_j tilt_j r_j)``; ``a`` is ``price``."""
        return {name: weight / self.price() for name, weight in self.rewards.items()}

    def part(self, first: int, last: int) -> "Coefficients":
        """Return those of samples ``first`` to ``last`` of the batch."""

        def of(amount: Amount) -> Amount:
            return amount[first:last] if isinstance(amount, np.ndarray) else amount

        return Coefficients(
            kl=of(self.kl),
            rewards={name: of(weight) for name, weight in self.rewards.items()},
            log_partition=None if self.log_partition is None else self.log_partition[first:last],
        )


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
        """Collect the terms of ``L`` for multipliers per scaled violation: ``[m]``, or ``[m, batch]``."""
        kl: Amount = 1.0 if self.objective == KL else 0.0
        rewards: dict[str, Amount] = dict(self.fixed)
        if self.objective != KL and not self.fixed:
            rewards[self.objective] = 1.0 / self.objective_scale
        if self.fixed:
            return Coefficients(kl=1.0, rewards=rewards)
        for constraint, multiplier in zip(self.constraints, multipliers, strict=True):
            share = (multiplier if np.ndim(multiplier) else float(multiplier)) / constraint.scale
            if constraint.quantity == KL:
                kl = kl + share
            else:
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

    def multipliers(self, prices: Mapping[str, float]) -> FloatArray:
        """Return the multipliers ``[m]`` per scaled violation of prices by name: the inverse of ``prices``."""
        found = np.array([prices.get(c.name, 0.0) * c.scale for c in self.constraints])
        if self.objective == KL:
            return found
        budgets = np.array([c.quantity == KL for c in self.constraints])
        found[budgets] /= self.objective_scale
        found[~budgets] *= found[budgets].sum()
        return found

    def prices(self, multipliers: Sequence[float] | FloatArray) -> dict[str, float]:
        """Return multipliers per absolute unit, by the constraint's name.

        A reward's is the slope dKL/db in nats per reward unit, also under a reward objective (there the
        Lagrangian is divided by the multiplier of the KL budget); a KL budget's is the slope of the objective,
        in reward units per nat.
        """
        if self.fixed:
            return {}
        coefficients = self.coefficients(multipliers)
        nats = 1.0 if self.objective == KL else float(coefficients.kl)
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
