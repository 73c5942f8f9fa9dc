"""Dual optimisers: how multipliers follow violations.

All work on scaled violations ``g``, ``[m]``, averaged over every worker and micro-batch, and keep ``λ >= 0``
by Euclidean projection. They hold numpy arrays in float64: equal violations give bit-identical multipliers on
every worker.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from trainers.config import DualConfig
from trainers.duality.projection import project_nonnegative
from trainers.types import FloatArray

_LEAST_VARIANCE = 1e-3
_LEAST_RATE = 1e-6
_LONGEST = 0.5


class DualOptimizer(ABC):
    """Multipliers with their update rule.

    ``multipliers`` is the dual iterate; ``effective(g)`` is what the primal sees, the same unless the rule adds
    a penalty.
    """

    def __init__(self, config: DualConfig, start: FloatArray) -> None:
        """Start from ``start``, ``[m]``, all >= 0.

        Raises:
            ValueError: a first multiplier is negative or not finite.
        """
        if not (np.isfinite(start).all() and (start >= 0).all()):
            raise ValueError(f"multipliers start finite and >= 0, got {start}")
        self.config = config
        self.multipliers = np.array(start, dtype=np.float64)

    def restart(self, multipliers: Sequence[float]) -> None:
        """Begin anew at multipliers ``[m]``."""
        self.multipliers = np.array(multipliers, dtype=np.float64)

    def observe(self, covariance: FloatArray) -> None:  # noqa: B027 - most rules have no use for it
        """Take the covariance ``[m, m]`` of what the constraints bound, scaled, over the samples of the next step."""

    def step(self, violations: FloatArray, rate: float = 1.0) -> None:
        """Take one dual step on ``violations`` ``[m]``; ``rate`` in [0, 1] anneals the step size.

        Raises:
            FloatingPointError: a violation is not finite; the multipliers stay as they were.
        """
        if not np.isfinite(violations).all():
            raise FloatingPointError(f"violations must be finite, got {violations}")
        self.multipliers = project_nonnegative(self._updated(violations, rate))

    def effective(self, violations: FloatArray | None) -> FloatArray:  # noqa: ARG002 - subclasses use it
        """Return the multipliers of the primal's Lagrangian, ``[m]``, given the last violations."""
        return self.multipliers

    @abstractmethod
    def _updated(self, violations: FloatArray, rate: float) -> FloatArray:
        """Return the next iterate before projection."""

    def state(self) -> dict[str, list[float] | None]:
        """Return all that the next step depends on, as JSON."""
        return {"multipliers": self.multipliers.tolist()}

    def load(self, state: dict[str, list[float] | None]) -> None:
        """Continue from ``state()``; floats survive JSON exactly."""
        self.multipliers = np.array(state["multipliers"], dtype=np.float64)


class DualAscent(DualOptimizer):
    """Projected dual ascent: ``λ ← [λ + η g]₊`` (Arrow, Hurwicz & Uzawa 1958; the paper's equation for alignment)."""

    def _updated(self, violations: FloatArray, rate: float) -> FloatArray:
        return self.multipliers + rate * self.config.rate * violations


class NuPI(DualOptimizer):
    """ν-PI controller: ``ξ_t = ν ξ_{t−1} + (1 − ν) g_t``, ``λ ← [λ + κ_i g_t + κ_p (ξ_t − ξ_{t−1})]₊``, ``ξ_0 = g_0``.

    Source: Sohrabi et al. 2024 (arXiv 2406.04558), algorithm 1 in recursive form. ``κ_i`` is ``rate``, ``κ_p``
    is ``proportional``. The proportional part damps the oscillations of plain ascent.
    """

    def __init__(self, config: DualConfig, start: FloatArray) -> None:
        """Start without a smoothed violation: the first one seen becomes ``ξ_0``."""
        super().__init__(config, start)
        self.smoothed: FloatArray | None = None

    def restart(self, multipliers: Sequence[float]) -> None:
        """Begin anew, also with what is smoothed."""
        super().restart(multipliers)
        self.smoothed = None

    def _updated(self, violations: FloatArray, rate: float) -> FloatArray:
        before = violations if self.smoothed is None else self.smoothed
        self.smoothed = self.config.nu * before + (1.0 - self.config.nu) * violations
        integral = self.config.rate * violations
        proportional = self.config.proportional * (self.smoothed - before)
        return self.multipliers + rate * (integral + proportional)

    def state(self) -> dict[str, list[float] | None]:
        """Return multipliers and smoothed violation."""
        return super().state() | {"smoothed": None if self.smoothed is None else self.smoothed.tolist()}

    def load(self, state: dict[str, list[float] | None]) -> None:
        """Continue from ``state()``."""
        super().load(state)
        smoothed = state["smoothed"]
        self.smoothed = None if smoothed is None else np.array(smoothed, dtype=np.float64)


class AugmentedLagrangian(DualOptimizer):
    """Augmented Lagrangian: the primal sees ``[λ + c g]₊``, and ``λ ← [λ + η g]₊``.

    The gradient of ``(‖[λ + c g]₊‖² − ‖λ‖²) / 2c`` in θ is ``[λ + c g]₊ ∇g`` (Bertsekas 1982, §3.1), so the
    penalty enters as a multiplier. ``c`` is ``penalty``; the violation is the last averaged one.
    """

    def _updated(self, violations: FloatArray, rate: float) -> FloatArray:
        return self.multipliers + rate * self.config.rate * violations

    def effective(self, violations: FloatArray | None) -> FloatArray:
        """Return ``[λ + c g]₊``."""
        if violations is None:
            return self.multipliers
        return project_nonnegative(self.multipliers + self.config.penalty * violations)


class Reweighted(DualOptimizer):
    """Solves for the multipliers at which the samples of the last steps, reweighted, meet their thresholds.

    Samples of ``p ∝ q exp(λ·r)`` with weights ``exp(δ·r)`` are those of the multipliers ``λ + δ``, and their violations
    ``g(λ + δ) = g − C δ + O(δ²)`` with ``C`` the covariance of ``r``. Over a window of steps s, each at its own
    multipliers, that is one model, ``mean g_s − C (λ − mean λ_s)``; the next multipliers solve it with complementary
    slackness, ``λ >= 0, g <= 0, λ·g = 0``, after ``C`` is divided by ``rate``: 1 goes all the way to the solution,
    less waits for a policy that follows its multipliers with a lag. No step is longer than ``δ·C δ = 1/2``: 60 %
    of the samples effective.

    Against ascent it knows the gain of every constraint, and averages the noise of ``window`` batches. ``C`` is taken
    over all prompts, and a policy moves less than an optimum does: both make ``C`` too large and steps cautious, never
    wrong at rest. Without ``observe``, and for a KL, a scaled variance of 1 is assumed.
    """

    def __init__(self, config: DualConfig, start: FloatArray) -> None:
        """Start with an empty window."""
        super().__init__(config, start)
        self._forget()

    def _forget(self) -> None:
        size = len(self.multipliers)
        self._rows = np.zeros((0, size * (size + 2)))  # of a step: violations, multipliers, covariance
        self._next = np.eye(size)

    def restart(self, multipliers: Sequence[float]) -> None:
        """Begin anew, also with what is remembered."""
        super().restart(multipliers)
        self._forget()

    def observe(self, covariance: FloatArray) -> None:
        """Take the covariance of the next step's samples."""
        self._next = covariance

    def _updated(self, violations: FloatArray, rate: float) -> FloatArray:
        size, now = len(violations), self.multipliers
        row = np.concatenate([violations, now, self._next.ravel()])
        self._rows = np.vstack([self._rows, row])[-self.config.window :]
        means = self._rows.mean(axis=0)
        covariance = means[2 * size :].reshape(size, size) + _LEAST_VARIANCE * np.eye(size)
        here = means[:size] - covariance @ (now - means[size : 2 * size])
        root = np.linalg.cholesky(covariance / max(min(rate * self.config.rate, 1.0), _LEAST_RATE))
        # min ½ ‖Rᵀ(λ' − λ)‖² − g·(λ' − λ) over λ' >= 0.
        solved, _ = nnls(root.T, root.T @ now + np.linalg.solve(root, here))
        step = solved - now
        length = float(step @ covariance @ step)
        return np.asarray(now + step * min(1.0, np.sqrt(_LONGEST / max(length, _LONGEST))))

    def state(self) -> dict[str, list[float] | None]:
        """Return multipliers and window."""
        return super().state() | {"window": self._rows.ravel().tolist()}

    def load(self, state: dict[str, list[float] | None]) -> None:
        """Continue from ``state()``."""
        super().load(state)
        size = len(self.multipliers)
        self._rows = np.array(state["window"], dtype=np.float64).reshape(-1, size * (size + 2))
