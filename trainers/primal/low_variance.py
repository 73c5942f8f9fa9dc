"""The single-step estimator with several noises per sample."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw, Policy, Start
from trainers.primal.base import GlobalMean, PrimalEstimate, detached, lagrangian, scored, without_gaps
from trainers.rewards.base import Reward

_SALT = 0x9E3779B1  # sets the noise of the copies apart from that of the batch


class LowVariance:
    """Differentiates rewards through the last active step, from several fresh noises: DRaFT-LV (arXiv 2309.17400).

    A finished sample is noised again to the start of the last active step, ``copies`` times, and that step is done
    again with gradients: the average over noises is what lowers the variance of the one-step gradient. Dropped:
    everything that earlier steps do to rewards, and to the KL of later steps. Kept: every step's direct KL
    gradient. Biased. Measured rewards and KL are those of the finished samples, not of the copies. In a chain of second
    order the step goes on from the guess that the sample's own path had before it.
    """

    def __init__(self, copies: int = 2) -> None:
        """Take the number of noises per sample.

        Raises:
            ValueError: it is not positive.
        """
        if copies < 1:
            raise ValueError(f"copies must be at least 1, got {copies}")
        self._copies = copies

    def __call__(
        self,
        policy: Policy,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        draw: Draw,
        global_mean: GlobalMean,
    ) -> PrimalEstimate:
        """Return the loss ``mean(a KL) − mean over copies of Σ c_j r_j``."""
        # `through=0`: no state carries a gradient, every step's KL keeps its direct one.
        drawn = policy.rollout(draw, through=0)
        with torch.no_grad():
            measured = scored(drawn, rewards, draw, coefficients)
        last = policy.active_steps - 1
        acting = {name: rewards[name] for name in coefficients.rewards}
        again: dict[str, Tensor] = dict.fromkeys(acting, torch.zeros(()))
        for copy in range(self._copies if acting else 0):
            fresh = policy.draw(
                draw.count, draw.seed ^ (_SALT + copy), first=draw.first, last=draw.first + len(draw)
            )
            state = policy.noised(drawn.final.detach(), last, fresh.noise[0])
            start = Start(step=last, state=state, before=drawn.before)
            end = policy.rollout(replace(draw, noise=fresh.noise), start=start)
            scores = without_gaps(scored(end, acting, draw, coefficients), acting, draw, global_mean)
            for name, score in scores.items():
                again[name] = again[name] + score / self._copies
        return PrimalEstimate(
            loss=lagrangian(coefficients, drawn.path_kl, again),
            path_kl=drawn.path_kl.detach(),
            rewards=detached(measured),
        )
