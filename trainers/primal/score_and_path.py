"""The score-function estimator for rewards without gradients, beside backpropagation for those that have them."""

from collections.abc import Mapping

import torch

from trainers.diffusion.path_kl import log_ratio_from_controls
from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw, Policy
from trainers.primal.base import (
    GlobalMean,
    PrimalEstimate,
    detached,
    lagrangian,
    mean_of_others,
    scored,
    weighted,
    without_gaps,
)
from trainers.rewards.base import Reward, differentiable


class ScoreAndPath:
    """Descends ``a KL − Σ_j c_j E[r_j]``: through the chain where a reward has a slope, by its score where it has none.

    With ``R`` the weighted sum of the rewards without gradients, the gradient of the rest is that of
    ``reward_backprop``, and ``∇ E[R] = E[(R − b) ∇ log p_θ(τ)]``, where ``∇ log p_θ(τ) = Σ_t ∇u_t·ε_t`` at the states
    that were visited (Mohamed et al. 2020, arXiv 1906.10652). The baseline ``b`` of a sample is the mean over the
    others of its prompt (leave one out, Kool et al. 2019), of which there are ``training.images_per_prompt``; where it
    is the only one, over the others of the batch. It never holds the sample, nor one with its noise of opposite sign,
    so the estimate is unbiased. Where no reward that acts has a gradient, the KL too goes by its score,
    ``R − a log p_θ/q`` in place of ``R``, and the chain is sampled once; else twice. In elastic trials, whose workers
    know their own part of a batch alone, the baseline of a prompt with one sample holds the sample, and that part is
    smaller by O(1/batch).
    """

    needs_gradients = False

    def __call__(
        self,
        policy: Policy,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        draw: Draw,
        global_mean: GlobalMean,
    ) -> PrimalEstimate:
        """Return the loss ``mean(a KL − Σ c_j r_j) − mean((R − b) log p_θ)``, in each sum what belongs to it."""
        opaque = {name for name in coefficients.rewards if not differentiable(rewards[name])}
        smooth = Coefficients(
            kl=coefficients.kl,
            rewards={name: weight for name, weight in coefficients.rewards.items() if name not in opaque},
        )
        chained = bool(smooth.rewards) or not opaque
        loss = torch.zeros((), device=draw.noise.device)
        if chained:
            drawn = policy.rollout(draw)
            scores = scored(drawn, rewards, draw, coefficients)
            whole = without_gaps(scores, rewards, draw, global_mean)
            loss = loss + lagrangian(smooth, drawn.path_kl, whole)
            path_kl, scores, whole = drawn.path_kl.detach(), detached(scores), detached(whole)
        if opaque:
            traced, controls = policy.traced(draw)  # [J, batch, d]
            assert traced.shifts is not None
            log_ratio = log_ratio_from_controls(controls, traced.shifts)
            if not chained:
                with torch.no_grad():
                    scores = scored(traced, rewards, draw, coefficients)
                path_kl, whole = traced.path_kl, without_gaps(scores, rewards, draw, global_mean)
            gained = torch.stack(
                [weighted(coefficients.rewards[name], whole[name]) for name in sorted(opaque)]
            ).sum(dim=0)
            if not chained:
                gained = gained - weighted(coefficients.kl, log_ratio.detach())
            advantage = gained - mean_of_others(policy, draw, gained, global_mean)
            loss = loss - (advantage * log_ratio).mean()
        return PrimalEstimate(loss=loss, path_kl=path_kl, rewards=scores)
