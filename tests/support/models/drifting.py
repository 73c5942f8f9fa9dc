"""Policies whose paths are known in closed form: Gaussian steps of a drift that a control adds to."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.paths import PathSamples

FloatArray = NDArray[np.float64]
Control = Callable[[FloatArray, float], FloatArray]
"""Place ``[n, m]`` and time in [0, 1) to a drift ``[n, m]``."""


@dataclass(frozen=True, kw_only=True)
class Drifting:
    """Rewards ``mean_c + scale_c W``, W a Gaussian of the unit variance that K steps of the reference end at.

    ``log Z_c(λ) = λ'mean_c + ½ Σ (λ scale_c)²``, and the optimum of λ has the constant drift ``λ scale_c``.
    """

    means: FloatArray
    """``[P, m]``"""
    scales: FloatArray
    """``[P, m]``"""
    steps: int = 8

    def least(self, thresholds: FloatArray) -> tuple[float, FloatArray]:
        """Least KL at thresholds ``[m]`` above the mean, nats, and its multipliers ``[m]``."""
        lift, variance = thresholds - self.means.mean(axis=0), (self.scales**2).mean(axis=0)
        return float(0.5 * (lift**2 / variance).sum()), lift / variance

    def log_partition(self, tilt: FloatArray) -> float:
        """E_c log Z_c, nats."""
        return float((self.means @ tilt + 0.5 * (self.scales * tilt) ** 2 @ np.ones(len(tilt))).mean())

    def draw(
        self,
        rng: np.random.Generator,
        each: int,
        control: Callable[[FloatArray, float, FloatArray], FloatArray] | None = None,
    ) -> PathSamples:
        """Draw ``each`` samples of every prompt.

        Args:
            rng: Of the noise.
            each: Their number.
            control: Place, time and ``scale_c`` of each sample to its drift; None for the reference.
        """
        count, size = self.means.shape
        prompts = np.repeat(np.arange(count), each)
        state, ratio = np.zeros((len(prompts), size)), np.zeros(len(prompts))
        kl = np.zeros(len(prompts))
        root = self.steps**-0.5
        for step in range(self.steps):
            noise = rng.standard_normal(state.shape)
            moved = np.zeros_like(state)
            if control is not None:
                moved = root * control(state, step / self.steps, self.scales[prompts])
            state += root * (moved + noise)
            kl += 0.5 * (moved**2).sum(axis=1)
            ratio += 0.5 * (moved**2).sum(axis=1) + (moved * noise).sum(axis=1)
        return PathSamples(
            rewards=self.means[prompts] + self.scales[prompts] * state,
            log_ratio=None if control is None else ratio,
            path_kl=None if control is None else kl,
            prompts=prompts,
            units=np.tile(np.arange(each), count),
        )
