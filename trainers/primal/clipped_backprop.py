"""Reward backpropagation in which no sample asks for more than a bound at any step."""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw, Policy
from trainers.primal.base import GlobalMean, PrimalEstimate, detached, lagrangian, like, scored, without_gaps
from trainers.rewards.base import Reward


class ClippedBackprop:
    """Differentiates ``a KL − Σ c_j r_j`` through every step, and clips the gradient at each state, sample by sample.

    At the state ``x`` in which a step of noise ``C`` ends, ``v = −C ∂L/∂x / a`` is the control for which one sample
    asks; over samples ``E[v | x_t]`` is the optimal one, with half its square in nats. Where the chain decides between
    modes the product of its Jacobians makes some ``v`` tens of times longer than the median, and one such sample drowns
    the batch. Here ``v`` is scaled down to ``‖v‖ <= limit`` wherever it is longer, before it goes on to earlier steps.
    Dropped: what lies beyond; a control longer than ``limit`` is not reached. Biased, the less the larger the limit;
    with one that is never met it is ``reward_backprop``.
    """

    def __init__(self, limit: float = 2.0) -> None:
        """Take the longest control, in units of a step's noise.

        Raises:
            ValueError: it is not positive.
        """
        if not limit > 0:
            raise ValueError(f"limit must be positive, got {limit}")
        self._limit = limit

    def __call__(
        self,
        policy: Policy,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        draw: Draw,
        global_mean: GlobalMean,
    ) -> PrimalEstimate:
        """Return the loss ``mean(a KL − Σ c_j r_j)``, its gradient clipped."""
        clip = _Clip(like(self._limit * coefficients.price(), draw.noise), len(draw))
        drawn = policy.rollout(draw, tap=clip.state)
        scores = scored(drawn, rewards, draw, coefficients)
        return PrimalEstimate(
            loss=clip.loss(
                lagrangian(coefficients, drawn.path_kl, without_gaps(scores, rewards, draw, global_mean))
            ),
            path_kl=drawn.path_kl.detach(),
            rewards=detached(scores),
        )


class _Clip:
    """Hooks of one backward pass, whatever the loss is multiplied by on the way: shares of a batch, a loss scale."""

    def __init__(self, limit: Tensor, batch: int) -> None:
        """Take the longest ``C ∂/∂x`` of a sample's own Lagrangian, of all or ``[batch]``, and how many they are."""
        self._limit, self._batch = limit, batch
        self._factor = torch.ones(())

    def loss(self, mean: Tensor) -> Tensor:
        """Return the loss; the backward pass passes it first, and leaves its factor here."""
        if mean.requires_grad:
            mean.register_hook(self._begin)  # type: ignore[no-untyped-call] # torch's
        return mean

    def _begin(self, factor: Tensor) -> None:
        self._factor = factor / self._batch

    def state(self, state: Tensor, noise: float | Tensor) -> None:
        """Clip the gradient at the states ``[batch, …]`` that a step of this noise ends in."""

        def clipped(gradient: Tensor) -> Tensor:
            flat = gradient.flatten(1)
            asked = noise * flat if isinstance(noise, float) else (flat[:, None] @ noise)[:, 0]
            length = asked.norm(dim=1) / self._factor.abs()
            share: Tensor = self._limit / length.clamp_min(self._limit)
            return gradient * share.view(-1, *[1] * (gradient.ndim - 1))

        if state.requires_grad:
            state.register_hook(clipped)  # type: ignore[no-untyped-call] # torch's
