"""Reward backpropagation through the last steps only."""

from collections.abc import Mapping

import numpy as np

from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw, Policy
from trainers.primal.base import GlobalMean, PrimalEstimate, detached, lagrangian, scored, without_gaps
from trainers.rewards.base import Reward


class TruncatedBackprop:
    """Differentiates through the states of the last K active steps: DRaFT-K (Clark et al. 2023, arXiv 2309.17400).

    With ``random`` the number of steps is drawn anew for every batch, uniformly from 1 to K (AlignProp, Prabhudesai
    et al. 2023, arXiv 2310.03739). Dropped: how earlier steps move rewards, and how they move the KL of any later
    step. Kept: every step's direct KL gradient, also before the window, or nothing would hold the shared adapter
    back there. Biased; it saves memory where the sampler holds one step at a time (gradient checkpointing). In a chain
    of second order the window's first step goes on from the guess before it, whose direct gradient is kept too.
    """

    def __init__(self, steps: int = 1, random: bool = False) -> None:
        """Take K, and whether it is drawn.

        Raises:
            ValueError: K is not positive.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self._steps, self._random = steps, random

    def __call__(
        self,
        policy: Policy,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        draw: Draw,
        global_mean: GlobalMean,
    ) -> PrimalEstimate:
        """Return the loss ``mean(a KL − Σ c_j r_j)``, its gradient truncated."""
        through = self._steps
        if self._random:
            # From the seed of the whole batch: all workers truncate alike.
            through = int(np.random.default_rng(draw.seed).integers(1, self._steps + 1))
        drawn = policy.rollout(draw, through=through)
        scores = scored(drawn, rewards, draw, coefficients)
        return PrimalEstimate(
            loss=lagrangian(coefficients, drawn.path_kl, without_gaps(scores, rewards, draw, global_mean)),
            path_kl=drawn.path_kl.detach(),
            rewards=detached(scores),
        )
