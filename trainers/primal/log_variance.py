"""The log-variance estimator: on-policy trajectory balance."""

from collections.abc import Mapping

import torch

from trainers.diffusion.path_kl import log_ratio_from_controls
from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw, Policy
from trainers.primal.base import GlobalMean, PrimalEstimate, like, scored, weighted, without_gaps
from trainers.rewards.base import Reward


class LogVariance:
    """Descends ``½ Var_τ[log p_θ(τ)/q(τ) − Σ_j (c_j / a) r_j(x_0)]`` over trajectories of the current policy.

    At the optimum ``p* ∝ q exp(Σ (c_j / a) r_j)`` the bracket is constant, so loss and gradient noise vanish
    there. On-policy its gradient equals that of ``KL − Σ (c_j / a) E[r_j]`` (Richter et al. 2020,
    arXiv 2010.10436, proposition 1; Nüsken & Richter 2021, arXiv 2005.05409): a score-function estimator with the
    batch mean as baseline. It needs no derivative of rewards or of the chain, so it does not suffer where the
    chain decides between modes; it needs batches large enough for that mean.

    With realised residuals ``v_t = u_t + ε_t``, ``log p_θ/q = Σ_t u_t·v_t − ½ ‖u_t‖²``. Biased by O(1/batch),
    because the baseline contains the sample itself.

    Where samples have tilts of their own the constant is another for each, ``−log Z`` of its tilt: what is known of it
    is added, and the batch mean is the baseline of the rest.
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
        """Return the loss ``½ mean((bracket − its mean over all workers)²)``."""
        drawn, controls = policy.traced(draw)  # [J, batch, d]
        with torch.no_grad():
            scores = scored(drawn, rewards, draw, coefficients)
        assert drawn.shifts is not None
        log_ratio = log_ratio_from_controls(controls, drawn.shifts)
        whole = without_gaps(scores, rewards, draw, global_mean)
        tilt = sum(weighted(weight, whole[name]) for name, weight in coefficients.tilt().items())
        bracket = log_ratio - tilt  # [batch]
        if coefficients.log_partition is not None:
            bracket = bracket + like(coefficients.log_partition, bracket)
        loss = 0.5 * (bracket - global_mean(bracket.detach().mean())).square().mean()
        return PrimalEstimate(loss=loss, path_kl=drawn.path_kl, rewards=scores)
