"""Full reward backpropagation through the sampling chain."""

from collections.abc import Mapping

from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw, Policy
from trainers.primal.base import GlobalMean, PrimalEstimate, detached, lagrangian, scored, without_gaps
from trainers.rewards.base import Reward


class RewardBackprop:
    """Differentiates ``a KL − Σ c_j r_j`` through every step (the pathwise gradient; nothing is dropped).

    Both parts of the KL's gradient are kept, the direct one and the one through the states, and the reference's
    prediction carries its gradient to the state. Unbiased. Where the chain decides between modes the pathwise
    gradient has a large variance, and learning stalls there: ``log_variance`` does not have that weakness.
    """

    def __call__(
        self,
        policy: Policy,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        draw: Draw,
        global_mean: GlobalMean,
    ) -> PrimalEstimate:
        """Return the loss ``mean(a KL − Σ c_j r_j)``."""
        drawn = policy.rollout(draw)
        scores = scored(drawn, rewards, draw, coefficients)
        return PrimalEstimate(
            loss=lagrangian(coefficients, drawn.path_kl, without_gaps(scores, rewards, draw, global_mean)),
            path_kl=drawn.path_kl.detach(),
            rewards=detached(scores),
        )
