"""How far constraints can be met at best, predicted from the policy's own samples."""

import numpy as np
from scipy.optimize import linprog

from trainers.duality.covariance import RewardCovariance
from trainers.duality.lagrangian import KL, Coefficients, Lagrangian
from trainers.types import FloatArray


def least_violation(
    lagrangian: Lagrangian,
    coefficients: Coefficients,
    violations: FloatArray,
    covariance: RewardCovariance,
    limit: float,
) -> float:
    """Return the least worst scaled violation that multipliers up to ``limit`` can reach, to first order.

    Along exponential tilts ``p ∝ q exp(Σ τ_j r_j)`` the moments answer as ``∂E[r_i]/∂τ_j = Cov_p(r_i, r_j)``
    and ``∂KL/∂τ_j = Σ_i τ_i Cov_p(r_i, r_j)``. So the best that any tilt ``0 <= τ_j s_j <= limit`` could do is a
    linear program in the change of ``τ``. The answer is small where a reward saturates, and cancels where two
    constraints pull against each other; a reward whose variance still falls under the tilt does worse than
    predicted, never better.

    Args:
        lagrangian: Objective, constraints and scales ``s_j``.
        coefficients: Of the Lagrangian at the current multipliers.
        violations: ``[m]``, scaled, of the policy.
        covariance: Of the rewards under the policy, those of the Lagrangian among them.
        limit: Largest multiplier, nats per scale.
    """
    scales = {c.quantity: c.scale for c in lagrangian.constraints if c.quantity != KL}
    if lagrangian.objective != KL:
        scales[lagrangian.objective] = lagrangian.objective_scale
    moved, scale = tuple(scales), np.array(list(scales.values()))
    tilts = coefficients.tilt()
    tilt = np.array([tilts.get(name, 0.0) for name in moved]) * scale  # [M], nats per scale
    kl_response = tilt / scale @ covariance.between(moved, moved) / scale  # [M]
    for constraint, violation in zip(lagrangian.constraints, violations, strict=True):
        if constraint.quantity == KL:
            # A policy that lags behind its multipliers has more KL than they explain. Without tilt it has none.
            explained = max(0.5 * float(kl_response @ tilt), 1e-12)
            kl_response *= max(1.0, (constraint.bound + violation * constraint.scale) / explained)

    def response(quantity: str) -> FloatArray:
        """Of a quantity to the tilts, ``[M]``."""
        found = kl_response if quantity == KL else covariance.between((quantity,), moved)[0] / scale
        return np.asarray(found)

    rows = np.array([c.sign * response(c.quantity) / c.scale for c in lagrangian.constraints])
    # Variables: the change of every tilt, and the worst violation t, which is minimised.
    best = linprog(
        np.append(np.zeros(len(moved)), 1.0),
        A_ub=np.column_stack([rows, -np.ones(len(rows))]),
        b_ub=-violations,
        bounds=[*((-t, max(limit - t, 0.0)) for t in tilt), (None, None)],
    )
    assert best.x is not None, best.message
    return float(best.x[-1])
