"""First multipliers from samples of the pretrained model alone.

The optimum of ``min KL(p‖q) s.t. E[r] >= b`` is ``p* ∝ q exp(λᵀr)`` with ``λ`` the maximiser of the concave dual. With
prompts c a policy chooses images and not prompts: one ``λ``, and a normalisation for each prompt,

    d(λ) = λᵀb − E_c A_c(λ),    A_c(λ) = log E_{q(x|c)} exp(λᵀr).

From ``n`` samples of a prompt ``A_c`` is too small by about ``(1/ESS − 1/n) / 2``, which does not average out over
prompts, and ``λ`` too large. The jackknife ``n A_c − (n − 1)/n Σ_i A_{c,−i}`` takes the first order of it out; it is
what is maximised. A prompt needs two samples for it. Where one has a single sample nothing is known of what a tilt
costs, and multipliers start at 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from trainers.types import FloatArray

_LEAST_LEFT = 1e-12
"""Share of a prompt's sum that is left without one sample, at least."""


@dataclass(frozen=True, kw_only=True)
class TiltedStart:
    """Multipliers that meet the thresholds on the tilted samples."""

    multipliers: FloatArray
    """``[m]``, nats per unit of the rewards given."""
    kl: float
    """Predicted least KL, nats."""
    effective_samples: float
    """``Σ_c 1 / Σ w²``: how many samples carry the prediction."""


class Prompts:
    """Which of ``n`` samples share a prompt."""

    def __init__(self, prompts: Sequence[str] | None, count: int) -> None:
        """Take the prompt of every sample; None for a model without prompts, whose samples are all alike."""
        names = np.zeros(count, dtype=np.int64) if prompts is None else np.asarray(prompts)
        _, self._places, self._counts = np.unique(names, return_inverse=True, return_counts=True)

    @property
    def several(self) -> bool:
        """Whether every prompt has two samples or more."""
        return bool((self._counts > 1).all())

    def shares(self, exponents: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return ``[n]`` shares of the samples in the sum of exponentials of their prompt, and ``A_c`` ``[P]``."""
        top = np.full(len(self._counts), -np.inf)
        np.maximum.at(top, self._places, exponents)
        masses = np.exp(exponents - top[self._places])
        sums = np.bincount(self._places, masses)
        return masses / sums[self._places], top + np.log(sums / self._counts)

    def log_partition(self, exponents: FloatArray) -> tuple[float, FloatArray]:
        """Return the mean over prompts of the jackknifed ``A_c``, and its gradient in the exponents, ``[n]``."""
        shares, logs = self.shares(exponents)
        places, counts = self._places, self._counts
        left = np.maximum(1.0 - shares, _LEAST_LEFT)
        without = np.log(left) + np.log(counts / (counts - 1))[places]  # A_{c,−i} − A_c
        factors = (counts - 1) / counts  # of the sum over i
        values = logs - factors * np.bincount(places, without)
        # ∂A_{c,−i} / ∂e_j is p_j / (1 − p_i) for j other than i.
        others = np.bincount(places, 1.0 / left)[places] - 1.0 / left
        weights = counts[places] * shares - factors[places] * shares * others
        return float(values.mean()), weights / len(counts)

    def effective(self, exponents: FloatArray) -> float:
        """Return ``Σ_c 1 / Σ w²``."""
        shares, _ = self.shares(exponents)
        return float(np.sum(1.0 / np.bincount(self._places, shares**2)))


def tilted_start(
    rewards: FloatArray,
    thresholds: FloatArray,
    limit: float = 20.0,
    *,
    prompts: Sequence[str] | None = None,
) -> TiltedStart:
    """Maximise the dual over ``0 <= λ <= limit``.

    Out of reach of the samples the dual is unbounded and ``limit`` is what comes back.

    Args:
        rewards: Of the pretrained model, ``[n, m]``.
        thresholds: ``[m]``, in the same (scaled) units.
        limit: Of every multiplier.
        prompts: Of the samples, ``[n]``; None for a model without.
    """
    excess, alike = rewards - thresholds, Prompts(prompts, len(rewards))
    count = rewards.shape[1]
    if not alike.several:
        return TiltedStart(
            multipliers=np.zeros(count), kl=0.0, effective_samples=alike.effective(np.zeros(len(rewards)))
        )

    def negative_dual(multipliers: FloatArray) -> tuple[float, FloatArray]:
        value, weights = alike.log_partition(excess @ multipliers)
        return value, weights @ excess

    found = minimize(
        negative_dual, np.zeros(count), jac=True, method="L-BFGS-B", bounds=[(0.0, limit)] * count
    )
    return TiltedStart(
        multipliers=found.x, kl=float(-found.fun), effective_samples=alike.effective(excess @ found.x)
    )


def tilt_within_budget(
    objective: FloatArray,
    rewards: FloatArray,
    thresholds: FloatArray,
    budget: float,
    limit: float = 20.0,
    *,
    prompts: Sequence[str] | None = None,
) -> tuple[float, FloatArray]:
    """Start ``max E[objective] s.t. KL <= budget, E[rewards] >= thresholds``.

    Its optimum tilts by ``(objective + μᵀ rewards) / ν``; ``ν`` minimises the dual
    ``ν · budget + ν · E_c log E exp((objective + μᵀ(rewards − thresholds)) / ν)``.

    Args:
        objective: ``[n]``, scaled.
        rewards: ``[n, m]``, scaled.
        thresholds: ``[m]``, scaled.
        budget: nats, > 0.
        limit: Largest multiplier that is considered.
        prompts: Of the samples, ``[n]``; None for a model without.

    Returns:
        ``ν`` (units of the objective per nat) and ``μ`` ``[m]``.
    """
    excess, alike = rewards - thresholds, Prompts(prompts, len(rewards))
    count = rewards.shape[1]
    if not alike.several:
        return 0.0, np.zeros(count)

    def dual(nu: float) -> tuple[float, FloatArray]:
        def inner(mu: FloatArray) -> tuple[float, FloatArray]:
            value, weights = alike.log_partition((objective + excess @ mu) / nu)
            return nu * (budget + value), weights @ excess

        if count == 0:
            return inner(np.zeros(0))[0], np.zeros(0)
        found = minimize(inner, np.zeros(count), jac=True, method="L-BFGS-B", bounds=[(0.0, limit)] * count)
        return float(found.fun), found.x

    best = minimize_scalar(
        lambda log_nu: dual(float(np.exp(log_nu)))[0], bounds=(-4.0, 3.0), method="bounded"
    )
    nu = float(np.exp(best.x))
    return nu, dual(nu)[1]
