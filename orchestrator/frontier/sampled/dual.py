"""The dual of one row of thresholds over samples: its maximum, and how far other samples would move it.

A bootstrap replicate (``samples``) changes the sums at λ* and so value and gradient of the dual there; its maximum
is that of g'δ − ½ δ'Hδ under λ* + δ >= 0, exact up to the third order and far cheaper than to solve it.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from orchestrator.frontier.sampled.tilted import BEYOND, BlockSums, TiltedSamples
from orchestrator.frontier.solvers.concave import Evaluation, maximise

FloatArray = NDArray[np.float64]

POINT_LIMIT = 1e6
"""Nats per σ where a dual that still rises has no maximum."""
STEEPEST = 30.0
"""Log of nats per σ, where a search for the price of an objective ends."""


class SampledDual:
    """The dual of one row of thresholds, λ in nats per scale."""

    def __init__(self, tilted: TiltedSamples, thresholds: FloatArray) -> None:
        """Take absolute thresholds ``[m]``; NaN or −inf where a reward is free."""
        self.tilted = tilted
        self.bound = np.flatnonzero(np.isfinite(thresholds))
        """``[q]``, the rewards that have a threshold."""
        self.thresholds = ((thresholds - tilted.center) / tilted.scale)[self.bound]

    def maximised(
        self, log_partition: Callable[[BlockSums], Evaluation], fixed: FloatArray | None = None
    ) -> tuple[FloatArray, float, bool]:
        """Maximise over the λ of the thresholds.

        Args:
            log_partition: ``TiltedSamples.plain`` or ``corrected``.
            fixed: ``[m]``, added to λ; by default nothing.

        Returns:
            λ ``[m]``, the dual's value in nats, and whether it has a maximum.
        """
        base = np.zeros(len(self.tilted.scale)) if fixed is None else fixed

        def dual(point: FloatArray) -> Evaluation:
            here = log_partition(self.tilted.block_sums(base + self.full(point), self.bound))
            return Evaluation(
                value=float(point @ self.thresholds) - here.value,
                gradient=self.thresholds - here.gradient,
                hessian=-here.hessian,
            )

        point, value, inside = maximise(
            dual,
            np.zeros(len(self.bound)),
            value_limit=self.tilted.greatest_kl + 1.0,
            point_limit=POINT_LIMIT,
        )
        return base + self.full(point), value, inside

    def greatest(self, objective: int, budget: float) -> tuple[FloatArray, float, bool]:
        """Maximise one more reward under a KL budget and the thresholds, which cost less than it.

        The KL of the cheapest tilt that meets the thresholds rises with its λ of the objective; where it is the
        budget stands the optimum.

        Args:
            objective: Its index; it has no threshold.
            budget: Nats.

        Returns:
            λ ``[m]``, the greatest expected objective, scaled, and whether the samples show it.
        """
        direction = np.zeros(len(self.tilted.scale))
        direction[objective] = 1.0
        everything = np.arange(len(direction))

        def tilt_at(logarithm: float) -> FloatArray:
            return self.maximised(self.tilted.corrected, math.exp(logarithm) * direction)[0]

        def excess(logarithm: float) -> float:
            tilt = tilt_at(logarithm)
            here = self.tilted.corrected(self.tilted.block_sums(tilt, everything))
            return float(tilt @ here.gradient) - here.value - budget

        low = high = 0.0
        while excess(low) > 0 and low > -STEEPEST:
            low -= 1.0
        while excess(high) < 0:
            if high >= STEEPEST or self.tilted.verdict(tilt_at(high)) == BEYOND:
                return tilt_at(high), math.nan, False
            low, high = high, high + 1.0
        tilt = tilt_at(brentq(excess, low, high, xtol=1e-10))
        reward = self.tilted.corrected(self.tilted.block_sums(tilt, everything)).gradient[objective]
        return tilt, float(reward), True

    def full(self, point: FloatArray) -> FloatArray:
        """λ ``[m]`` from that of the rewards with a threshold ``[q]``."""
        vector = np.zeros(len(self.tilted.scale))
        vector[self.bound] = point
        return vector

    def replicates(self, tilt: FloatArray, sums: BlockSums) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Bootstrap the dual around λ.

        Replicates are shifted to a mean of 0, as each has the bias of its own draw and the estimate has none, and
        widened: sums in which few samples count vary more than their own replicates show. The jackknife errs to
        the other side (Efron & Stein 1981); with 16 samples a prompt it lifts the coverage from 0.90 to 0.95.

        Args:
            tilt: λ ``[m]``.
            sums: At λ, of all rewards.

        Returns:
            Changes of the value at λ ``[B]``, of the maximum ``[B]`` and of the maximiser ``[B, m]``.
        """
        tilted = self.tilted
        features = sums.features[:, [0, *(1 + self.bound)]]
        factors = tilted.samples.replicates
        values = np.zeros(len(factors))
        means = np.zeros((len(factors), len(self.bound)))
        for prompt, (first, size) in enumerate(zip(tilted.prompt_blocks, tilted.blocks, strict=True)):
            drawn = factors[:, first : first + size] @ features[first : first + size]
            drawn[:, 0] = np.maximum(drawn[:, 0], 1e-12)
            values -= np.log(drawn[:, 0] / tilted.drawn_weights[:, prompt])
            means += drawn[:, 1:] / drawn[:, :1]
        widening = tilted.widening(sums) / tilted.prompts
        values = widening * (values - values.mean())
        here = self.thresholds - tilted.corrected(sums).gradient[self.bound]
        gradients = here - widening * (means - means.mean(axis=0))
        curvature = tilted.plain(sums).hessian[np.ix_(self.bound, self.bound)]
        steps, gains = _quadratic_optimum(gradients, curvature, tilt[self.bound])
        changes = np.zeros((len(factors), len(tilt)))
        changes[:, self.bound] = steps
        return values, values + gains, changes


def _quadratic_optimum(
    gradients: FloatArray, curvature: FloatArray, tilt: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Maximise g'δ − ½ δ'Hδ under tilt + δ >= 0 by coordinate ascent, for all replicates at once.

    Args:
        gradients: g ``[B, q]``.
        curvature: H ``[q, q]``.
        tilt: ``[q]``, >= 0.

    Returns:
        δ ``[B, q]`` and the maximum ``[B]``.
    """
    steps = np.zeros_like(gradients)
    for _ in range(100):
        for index in range(len(tilt)):
            slope = gradients[:, index] - steps @ curvature[index]
            steps[:, index] += slope / max(curvature[index, index], 1e-9)
            steps[:, index] = np.maximum(steps[:, index], -tilt[index])
    gains: FloatArray = np.einsum("bi,bi->b", gradients - 0.5 * steps @ curvature, steps)
    return steps, gains


def percentiles(replicates: FloatArray) -> FloatArray:
    """Two-sided 95 % percentiles over the first axis; ``[2, ..]``."""
    ends: FloatArray = np.quantile(replicates, [0.025, 0.975], axis=0, method="weibull")
    return ends
