"""Dual optimisers: how multipliers follow violations.

All work on scaled violations ``g``, ``[m]``, averaged over every worker and micro-batch, and keep ``λ >= 0``
by Euclidean projection. They hold numpy arrays in float64: equal violations give bit-identical multipliers on
every worker.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from trainers.config import DualConfig
from trainers.duality.projection import project_nonnegative
from trainers.types import FloatArray


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
