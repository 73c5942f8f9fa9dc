"""When a trial has converged, and when it is stuck."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.config import ConvergenceConfig
from trainers.duality.covariance import RewardCovariance
from trainers.types import FloatArray

History = list[list[list[float]]]


@dataclass(frozen=True, kw_only=True)
class Stuck:
    """A constraint that stays violated however its multiplier rises, and what the window shows beside it."""

    index: int
    """Of the constraint."""
    violations: FloatArray
    """``[m]``, scaled, mean over the later half of the window."""
    covariance: RewardCovariance
    """The same."""


class KKTMonitor:
    """Watches objective, violations and multipliers over a window of optimiser steps.

    The KKT residual is the largest of

    * primal feasibility: the mean violation ``[ḡ_i]₊``, of a KL as a share of its budget,
    * complementary slackness: ``|λ̄_i ḡ_i|``,
    * stationarity: the drift of KL and multipliers between the halves of the window, relative to ``1 + size``,

    in scaled units (σ of the pretrained model, nats). Single steps are too noisy to judge; means over the
    window are not, if it is wide enough for the batch. So a window counts as converged only if it shows that the
    Lagrangian has come to rest as well: its drift between the halves, and the standard error of that drift, are
    within tolerance. With fixed weights nothing else tells whether training still gains; small batches can never
    show it, and take all their steps, constrained or weighted.
    """

    def __init__(
        self, config: ConvergenceConfig, rewards: Sequence[str], units: Sequence[float] = ()
    ) -> None:
        """Watch nothing yet.

        Args:
            config: Window and tolerance.
            rewards: Their names, in the order in which the window holds their covariance.
            units: ``[m]``, what the tolerance of each violation is a share of (``Constraint.unit``); none for 1.
        """
        self._config, self._rewards = config, tuple(rewards)
        self._units = np.array(units or [1.0], dtype=np.float64)
        self._rows: deque[list[list[float]]] = deque(maxlen=config.window)

    def observe(
        self,
        kl: float,
        violations: FloatArray,
        multipliers: FloatArray,
        covariance: RewardCovariance,
        lagrangian: float,
    ) -> None:
        """Add one optimiser step.

        Args:
            kl: Nats.
            violations: ``[m]``, scaled.
            multipliers: ``[m]``, the same.
            covariance: Of the rewards.
            lagrangian: Its value, nats (σ of the objective, where that is a reward).
        """
        spread = covariance.between(self._rewards, self._rewards).ravel().tolist()
        self._rows.append([[kl], violations.tolist(), multipliers.tolist(), spread, [lagrangian]])

    @property
    def full(self) -> bool:
        """Whether the window is filled."""
        return len(self._rows) == self._config.window

    def residual(self) -> float:
        """Return the KKT residual over what the window holds; infinite before two steps."""
        if len(self._rows) < 2:
            return float("inf")
        kl, violations, multipliers, _, _ = self._columns()
        half = len(kl) // 2
        gap = violations.mean(axis=0)
        price = multipliers.mean(axis=0)
        drifts = [
            np.abs(x[half:].mean(axis=0) - x[:half].mean(axis=0)) / (1.0 + np.abs(x.mean(axis=0)))
            for x in (kl, multipliers)
        ]
        parts = [np.maximum(gap, 0.0) / self._units, np.abs(price * gap), *drifts]
        return float(max((np.max(part) for part in parts if part.size), default=0.0))

    def means(self) -> tuple[float, FloatArray] | None:
        """Return the mean KL and the mean scaled violations ``[m]`` over a full window, or None before it is full."""
        if not self.full:
            return None
        kl, violations, _, _, _ = self._columns()
        return float(kl.mean()), violations.mean(axis=0)

    def converged(self) -> bool:
        """Whether the window is full, its KKT residual within tolerance, and the Lagrangian seen at rest."""
        return self.full and max(self.residual(), *self._lagrangian_drift()) <= self._config.tolerance

    def stuck(self) -> Stuck | None:
        """Return the first constraint that stays violated however its multiplier rises, or None.

        Over a full window: violated by more than two tolerances, improving by less than a tenth between the
        halves, while the multiplier rose. Alone this is no proof: a threshold with a steep price looks the same.
        """
        if not self.full:
            return None
        _, violations, multipliers, covariance, _ = self._columns()
        half, size = len(violations) // 2, len(self._rewards)
        early, late = violations[:half].mean(axis=0), violations[half:].mean(axis=0)
        rise = multipliers[half:].mean(axis=0) - multipliers[:half].mean(axis=0)
        stays = (late > 2 * self._config.tolerance * self._units) & (early - late < 0.1 * early) & (rise > 0)
        if not stays.any():
            return None
        return Stuck(
            index=int(np.argmax(stays)),
            violations=late,
            covariance=RewardCovariance(
                names=self._rewards, values=covariance[half:].mean(axis=0).reshape(size, size)
            ),
        )

    def _lagrangian_drift(self) -> tuple[float, float]:
        """Return how far the Lagrangian moved between the halves of the window, and the standard error of that.

        Absolute: with fixed weights its size hangs on where the rewards have their zero.
        """
        lagrangian = self._columns()[4][:, 0]
        early, late = np.array_split(lagrangian, 2)
        if len(early) < 2 or len(late) < 2:
            return float("inf"), float("inf")
        error = np.sqrt(early.var(ddof=1) / len(early) + late.var(ddof=1) / len(late))
        return abs(float(late.mean() - early.mean())), float(error)

    def _columns(self) -> tuple[FloatArray, ...]:
        """Return KL, violations, multipliers, covariances and Lagrangian: ``[window, 1, m, m, R² and 1]``."""
        return tuple(np.array(column) for column in zip(*self._rows, strict=True))

    def state(self) -> History:
        """Return the window, as JSON."""
        return list(self._rows)

    def load(self, state: History) -> None:
        """Continue from ``state()``."""
        self._rows = deque(state, maxlen=self._config.window)
