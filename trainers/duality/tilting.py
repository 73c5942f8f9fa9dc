"""First multipliers from samples of the pretrained model alone.

The optimum of ``min KL(p‖q) s.t. E[r] >= b`` is ``p* ∝ q exp(λᵀr)`` with ``λ`` the maximiser of the concave
dual ``d(λ) = λᵀb − log E_q exp(λᵀr)``; with samples of ``q`` the expectation is a mean (mathematics: the paper,
§3; exponential tilting).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp, softmax

from trainers.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class TiltedStart:
    """Multipliers that meet the thresholds on the tilted samples."""

    multipliers: FloatArray
    """``[m]``, nats per unit of the rewards given."""
    kl: float
    """Predicted least KL, nats."""
    effective_samples: float
    """``1 / Σ w²``: how many samples carry the prediction."""


def tilted_start(rewards: FloatArray, thresholds: FloatArray, limit: float = 20.0) -> TiltedStart:
    """Maximise the dual over ``0 <= λ <= limit`` for rewards ``[n, m]`` of the pretrained model.

    Thresholds ``[m]`` are in the same (scaled) units. Out of reach of the samples the dual is unbounded and
    ``limit`` is what comes back.
    """
    excess = rewards - thresholds

    def negative_dual(multipliers: FloatArray) -> tuple[float, FloatArray]:
        exponents = excess @ multipliers
        return float(logsumexp(exponents) - np.log(len(excess))), softmax(exponents) @ excess

    count = rewards.shape[1]
    found = minimize(
        negative_dual, np.zeros(count), jac=True, method="L-BFGS-B", bounds=[(0.0, limit)] * count
    )
    weights = softmax(excess @ found.x)
    return TiltedStart(
        multipliers=found.x, kl=float(-found.fun), effective_samples=float(1.0 / np.sum(weights**2))
    )


def tilt_within_budget(
    objective: FloatArray, rewards: FloatArray, thresholds: FloatArray, budget: float, limit: float = 20.0
) -> tuple[float, FloatArray]:
    """Start ``max E[objective] s.t. KL <= budget, E[rewards] >= thresholds``.

    Its optimum tilts by ``(objective + μᵀ rewards) / ν``; ``ν`` minimises the dual
    ``ν · budget + ν · log E exp((objective + μᵀ(rewards − thresholds)) / ν)``.

    Args:
        objective: ``[n]``, scaled.
        rewards: ``[n, m]``, scaled.
        thresholds: ``[m]``, scaled.
        budget: nats, > 0.
        limit: Largest multiplier that is considered.

    Returns:
        ``ν`` (units of the objective per nat) and ``μ`` ``[m]``.
    """
    excess = rewards - thresholds
    count = rewards.shape[1]

    def dual(nu: float) -> tuple[float, FloatArray]:
        def inner(mu: FloatArray) -> tuple[float, FloatArray]:
            exponents = (objective + excess @ mu) / nu
            value = nu * (budget + logsumexp(exponents) - np.log(len(objective)))
            return float(value), softmax(exponents) @ excess

        if count == 0:
            return inner(np.zeros(0))[0], np.zeros(0)
        found = minimize(inner, np.zeros(count), jac=True, method="L-BFGS-B", bounds=[(0.0, limit)] * count)
        return float(found.fun), found.x

    best = minimize_scalar(
        lambda log_nu: dual(float(np.exp(log_nu)))[0], bounds=(-4.0, 3.0), method="bounded"
    )
    nu = float(np.exp(best.x))
    return nu, dual(nu)[1]
