"""The score-function estimator on stored rollouts: one serves several optimiser steps, weighted by its path ratio."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.diffusion.path_kl import log_ratio_from_controls, path_kl_from_controls
from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw, Policy
from trainers.primal.base import GlobalMean, PrimalEstimate, mean_of_others, scored, weighted, without_gaps
from trainers.rewards.base import Reward


@dataclass(kw_only=True)
class _Stored:
    """One batch of rollouts of an earlier policy ``o``."""

    draw: Draw
    inputs: Tensor
    """``[J, batch, …]``, of the controls."""
    shifts: Tensor
    """``u_o + ε``, ``[J, batch, d]``."""
    controls: Tensor
    """``u_o``, ``[J, batch, d]``."""
    scores: Mapping[str, Tensor]
    """``[batch]`` each."""
    asked: tuple[int, int]
    """The draw for which it served last."""
    uses: int = 1
    """Optimiser steps that it served."""


class ReusedRollouts:
    """Descends ``a KL − Σ_j c_j E[r_j]`` by scores of paths that an earlier policy ``o`` took and that are kept.

    With ``h = log p_θ(τ)/q(τ)`` and ``R`` the weighted sum of the rewards, the gradient is

        ``∇L = −E_o[w (R − a h − b) ∇h]``,   ``w = p_θ(τ)/p_o(τ) = exp(h_θ − h_o)``,

    exactly: policy and reference share the noise of every step, so that ``h`` is a sum of controls at the states that
    were visited (``log_ratio_from_controls``), one call of the network without sampling, decoding or scoring. The
    weights are neither clipped nor normalised. The baseline ``b`` of a sample is the weighted mean over the others of
    its prompt, or of the batch (``mean_of_others``); ``E_o[w ∇h] = 0`` for each. A batch serves ``steps`` optimiser
    steps, and no longer than ``KL(p_o ‖ p_θ) = E_o Σ ½‖u_θ − u_o‖²`` is within ``radius`` nats: beyond, rollouts are
    new, and the weights 1. Rewards with a slope are taken by their scores too.

    Unbiased for a ``θ`` that does not depend on the rollouts. Dropped: that from the second step on it does, as it was
    trained on them; ``steps`` and ``radius`` bound by how much. At every checkpoint rollouts begin anew, as they do for
    a trial that continues from it.

    What is measured is of the policy as it is: ``w ½Σ‖u_θ‖²`` and ``w (r − m) + m``, ``m`` a mean over others,
    have the means of KL and rewards; only their spread is another.
    """

    needs_gradients = False
    for_each_sample = False

    def __init__(self, steps: int = 4, radius: float = 0.1) -> None:
        """Take for how many optimiser steps a rollout serves, and the nats within which it does.

        Raises:
            ValueError: one is not positive.
        """
        if steps < 1 or not radius > 0:
            raise ValueError(f"steps must be at least 1 and radius above 0, got {steps} and {radius:g}")
        self._steps, self._radius = steps, radius
        self._stored: dict[tuple[int, int, int], _Stored] = {}
        """By micro-batch, first sample and number of samples."""

    def forget(self) -> None:
        """Begin with new rollouts."""
        self._stored.clear()

    def __call__(
        self,
        policy: Policy,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        draw: Draw,
        global_mean: GlobalMean,
    ) -> PrimalEstimate:
        """Return the loss ``−mean(w (R − a h − b) h)``, in which ``h`` alone, the last, has gradients.

        Raises:
            ValueError: coefficients are of each sample: those of stored ones are not known.
        """
        price, amounts = coefficients.kl, coefficients.rewards
        if draw.tilt is not None or not all(
            isinstance(amount, float) for amount in (price, *amounts.values())
        ):
            raise ValueError("stored rollouts serve one optimum: samples have no coefficients of their own")
        stored, controls = self._rollouts(policy, rewards, coefficients, draw, global_mean)
        log_ratio = log_ratio_from_controls(controls, stored.shifts)
        now = log_ratio.detach()
        weights = (now - log_ratio_from_controls(stored.controls, stored.shifts)).exp()  # [batch]
        whole = without_gaps(stored.scores, rewards, stored.draw, global_mean)
        gained = -weighted(price, now)
        for name, weight in amounts.items():
            gained = gained + weighted(weight, whole[name])
        total, mass = (
            mean_of_others(policy, stored.draw, values, global_mean) for values in (weights * gained, weights)
        )
        baseline = torch.where(mass > 0, total / mass, 0.0)
        return PrimalEstimate(
            loss=-(weights * (gained - baseline) * log_ratio).mean(),
            path_kl=weights * path_kl_from_controls(controls.detach()),
            rewards={
                name: _reweighted(policy, stored.draw, score, weights, global_mean)
                for name, score in stored.scores.items()
            },
            draw=stored.draw,
        )

    def _rollouts(
        self,
        policy: Policy,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        draw: Draw,
        global_mean: GlobalMean,
    ) -> tuple[_Stored, Tensor]:
        """Return rollouts, with the controls ``[J, batch, d]`` that the policy takes on them now; asks for one mean.

        All workers, and both halves of a batch, keep theirs together. For a draw that was seen it is decided already.
        """
        key, asked = (draw.batch, draw.first, len(draw)), (draw.seed, int(draw.seeds[0]))
        stored, controls, apart = self._stored.get(key), None, torch.inf
        if stored is not None and stored.scores.keys() != rewards.keys():
            stored = None
        if stored is not None and (stored.asked == asked or stored.uses < self._steps):
            controls = policy.controls(stored.draw, stored.inputs)
            apart = float(path_kl_from_controls(controls.detach() - stored.controls).mean())
        within = float(global_mean(torch.tensor(apart, device=draw.noise.device))) <= self._radius
        if stored is not None and controls is not None and (stored.asked == asked or within):
            stored.uses += stored.asked != asked
            stored.asked = asked
            return stored, controls
        drawn, controls = policy.traced(draw)
        with torch.no_grad():
            scores = scored(drawn, rewards, draw, coefficients)
        assert drawn.inputs is not None
        assert drawn.shifts is not None
        stored = _Stored(
            draw=draw,
            inputs=drawn.inputs,
            shifts=drawn.shifts,
            controls=controls.detach(),
            scores=scores,
            asked=asked,
        )
        self._stored[key] = stored
        return stored, controls


def _reweighted(
    policy: Policy, draw: Draw, scores: Tensor, weights: Tensor, global_mean: GlobalMean
) -> Tensor:
    """Return ``w (r − m) + m``, ``[batch]``, with ``m`` the mean over others; NaN where there is no score."""
    known = ~scores.isnan()
    there = torch.where(known, scores, 0.0)
    total, share = (
        mean_of_others(policy, draw, values, global_mean) for values in (there, known.to(there.dtype))
    )
    mean = torch.where(share > 0, total / share, 0.0)
    return weights * (scores - mean) + mean
