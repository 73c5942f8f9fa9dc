"""Full reward backpropagation through the sampling chain."""

from collections.abc import Mapping

from torch import Tensor

from trainers.diffusion.sampling import rollout
from trainers.duality.lagrangian import Coefficients
from trainers.models.mixture import ControlNetwork, MixtureModel
from trainers.primal.base import GlobalMean, PrimalEstimate
from trainers.rewards.base import Reward


class RewardBackprop:
    """Differentiates ``a KL − Σ c_j r_j`` through every step (the pathwise gradient; nothing is dropped).

    Both parts of the KL's gradient are kept, the direct one and the one through the states, and the reference's
    prediction carries its gradient to the state. Unbiased. Where the chain decides between modes the pathwise
    gradient has a large variance, and learning stalls there: ``log_variance`` does not have that weakness.
    """

    def __call__(
        self,
        model: MixtureModel,
        network: ControlNetwork,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        noise: Tensor,
        global_mean: GlobalMean,  # noqa: ARG002 - the loss is a plain mean
    ) -> PrimalEstimate:
        """Return the loss ``mean(a KL − Σ c_j r_j)``."""
        drawn = rollout(model, network, noise)
        scores = {name: reward(drawn.samples) for name, reward in rewards.items()}
        loss = coefficients.kl * drawn.path_kl.mean()
        for name, weight in coefficients.rewards.items():
            loss = loss - weight * scores[name].mean()
        return PrimalEstimate(
            loss=loss,
            path_kl=drawn.path_kl.detach(),
            rewards={name: score.detach() for name, score in scores.items()},
        )
