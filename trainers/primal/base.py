"""What an estimator of the primal gradient is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from trainers.duality.lagrangian import Coefficients
from trainers.models.mixture import ControlNetwork, MixtureModel
from trainers.rewards.base import Reward

GlobalMean = Callable[[Tensor], Tensor]
"""Mean of a scalar over all workers, without gradient."""


@dataclass(frozen=True, kw_only=True)
class PrimalEstimate:
    """One micro-batch on one worker."""

    loss: Tensor
    """Scalar; its gradient, averaged over workers and micro-batches, descends the Lagrangian."""
    path_kl: Tensor
    """``[batch]``, nats, detached."""
    rewards: Mapping[str, Tensor]
    """``[batch]`` each, reward units, detached."""


class PrimalEstimator(Protocol):
    """Estimates the gradient of ``L(θ) = a KL − Σ_j c_j E[r_j]`` from one batch of noise."""

    def __call__(
        self,
        model: MixtureModel,
        network: ControlNetwork,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        noise: Tensor,
        global_mean: GlobalMean,
    ) -> PrimalEstimate:
        """Return the loss with its measured quantities; ``noise`` is ``[K + 1, batch, d]``."""
