"""When a trial has converged, and when its thresholds are out of reach."""

from collections import deque

import numpy as np

from trainers.config import ConvergenceConfig
from trainers.types import FloatArray

History = list[list[float]]


class KKTMonitor:
    """Watches objective, violations and multipliers over a window of optimiser steps.

    The KKT residual is the largest of

    * primal feasibility: the mean violation ``[ḡ_i]₊``,
    * complementary slackness: ``|λ̄_i ḡ_i|``,
    * stationarity: the drift of KL and multipliers between the halves of the window, relative to ``1 + size``,

    in scaled units (σ of the pretrained model, nats). Single steps are too noisy to judge; means over the
    window are not.
    """

    def __init__(self, config: ConvergenceConfig) -> None:
        """Watch nothing yet."""
        self._config = config
        self._rows: deque[list[float]] = deque(maxlen=config.window)

    def observe(self, kl: float, violations: FloatArray, multipliers: FloatArray) -> None:
        """Add one optimiser step: ``kl`` in nats, scaled violations and multipliers ``[m]``."""
        self._rows.append([kl, *violations.tolist(), *multipliers.tolist()])

    @property
    def full(self) -> bool:
        """Whether the window is filled."""
        return len(self._rows) == self._config.window

    def residual(self) -> float:
        """Return the KKT residual over what the window holds; infinite before two steps."""
        if len(self._rows) < 2:
            return float("inf")
        rows = np.array(self._rows)
        kl, violations, multipliers = self._split(rows)
        half = len(rows) // 2
        gap = violations.mean(axis=0)
        price = multipliers.mean(axis=0)
        drifts = [
            np.abs(x[half:].mean(axis=0) - x[:half].mean(axis=0)) / (1.0 + np.abs(x.mean(axis=0)))
            for x in (kl, multipliers)
        ]
        parts = [np.maximum(gap, 0.0), np.abs(price * gap), *drifts]
        return float(max((np.max(part) for part in parts if part.size), default=0.0))

    def converged(self) -> bool:
        """Whether the window is full and its KKT residual within tolerance."""
        return self.full and self.residual() <= self._config.tolerance

    def infeasible(self) -> int | None:
        """Return the first constraint that shows the signs of an unreachable threshold, or None.

        Over a full window: violated by more than five tolerances all along, improving by less than a tenth,
        while its multiplier rose throughout and passed ``multiplier_limit``.
        """
        if not self.full:
            return None
        _, violations, multipliers = self._split(np.array(self._rows))
        half = len(violations) // 2
        for index in range(violations.shape[1]):
            early, late = violations[:half, index].mean(), violations[half:, index].mean()
            stuck = late > 5 * self._config.tolerance and early - late < 0.1 * early
            risen = multipliers[half:, index].mean() > multipliers[:half, index].mean()
            if stuck and risen and multipliers[-1, index] > self._config.multiplier_limit:
                return index
        return None

    def _split(self, rows: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Split ``[window, 1 + 2 m]`` into KL ``[window, 1]``, violations and multipliers ``[window, m]``."""
        count = (rows.shape[1] - 1) // 2
        return rows[:, :1], rows[:, 1 : 1 + count], rows[:, 1 + count :]

    def state(self) -> History:
        """Return the window, as JSON."""
        return list(self._rows)

    def load(self, state: History) -> None:
        """Continue from ``state()``."""
        self._rows = deque(state, maxlen=self._config.window)
