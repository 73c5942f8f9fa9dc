"""What an estimator of the primal gradient is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.duality.lagrangian import Amount, Coefficients
from trainers.models.base import Draw, Policy, Rollout
from trainers.rewards.base import Reward, differentiable, most_missing
from trainers.rewards.grouped import neutral, scored_rows
from trainers.rewards.together import together

GlobalMean = Callable[[Tensor], Tensor]
"""Mean of a scalar over all workers, and the parts of a micro-batch, without gradient. All ask for equally many."""


@dataclass(frozen=True, kw_only=True)
class PrimalEstimate:
    """One micro-batch on one worker."""

    loss: Tensor
    """Scalar; its gradient, averaged over workers and micro-batches, descends the Lagrangian."""
    path_kl: Tensor
    """``[batch]``, nats, detached."""
    rewards: Mapping[str, Tensor]
    """``[batch]`` each, reward units, detached."""
    draw: Draw | None = None
    """What the samples were drawn from, where it is not what was given."""


class PrimalEstimator(Protocol):
    """Estimates the gradient of ``L(θ) = a KL − Σ_j c_j E[r_j]`` from one batch of noise.

    Coefficients are numbers, or one for each sample (``weighted`` multiplies by either): the gradient is then that of
    the mean over samples of each one's own ``L``.
    Built as ``Class(**parameters)`` with ``training.primal_parameters``. A class that also takes rewards without
    gradients says so by the attribute ``needs_gradients = False``, a plain constant in its body; one that takes no
    coefficients for each sample says so by ``for_each_sample = False``. One that keeps anything from step to step has a
    method ``forget()``, which is called at every checkpoint: what continues from there has nothing else either.
    """

    def __call__(
        self,
        policy: Policy,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        draw: Draw,
        global_mean: GlobalMean,
    ) -> PrimalEstimate:
        """Return the loss with its measured quantities."""


def scored(
    drawn: Rollout, rewards: Mapping[str, Reward], draw: Draw, coefficients: Coefficients
) -> dict[str, Tensor]:
    """Return every reward of a batch, ``[batch]`` each; with gradients those that have a weight, and any."""
    scores, without = {}, drawn.samples.detach()
    with together():
        for name, reward in rewards.items():
            if name in coefficients.rewards and differentiable(reward):
                scores[name] = reward(drawn.samples, draw.prompts)
            else:
                with torch.no_grad():
                    scores[name] = reward(without, draw.prompts)
    return scores


def without_gaps(
    scores: Mapping[str, Tensor], rewards: Mapping[str, Reward], draw: Draw, global_mean: GlobalMean
) -> dict[str, Tensor]:
    """Return scores ``[batch]`` in which a missing one moves nothing, and the others as much as the whole batch would.

    It becomes the mean ``m`` of those that are there, over all workers, and these ``m + (r − m) / s``, with ``s`` their
    share of the batch: so mean and covariances are, in expectation, those of a batch in which none is missing, where
    what is missing does not depend on the sample. Of a group of prompts mean and share are those of its samples, and
    the others stay as they are. Where none is there at all, they are such as move nothing. A reward that may miss
    scores asks for three means, however many are missing; others for none, and stay as they are.
    """
    found = dict(scores)
    for name, score in scores.items():
        if most_missing(rewards[name]) > 0:
            within = scored_rows(rewards[name], draw.prompts, len(score)).to(score.device)
            known = within & ~score.isnan()
            there = torch.where(known, score, 0.0)
            of_group, of_known, total = (
                global_mean(values.to(score.dtype).mean()) for values in (within, known, there)
            )
            if float(of_known) == 0:
                found[name] = torch.where(within, neutral(rewards[name]), score)
            elif float(of_known) < float(of_group):
                mean, share = total / of_known, of_known / of_group
                filled = torch.where(known, mean + (score - mean) / share, mean)
                found[name] = torch.where(within, filled, score)
    return found


def detached(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scores without gradients."""
    return {name: score.detach() for name, score in scores.items()}


def lagrangian(coefficients: Coefficients, path_kl: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
    """Return ``mean(a KL − Σ_j c_j r_j)`` over the batch, of the terms that have a weight."""
    loss = weighted_mean(coefficients.kl, path_kl) if np.any(coefficients.kl) else path_kl.new_zeros(())
    for name, weight in coefficients.rewards.items():
        loss = loss - weighted_mean(weight, scores[name])
    return loss


def weighted_mean(amount: Amount, values: Tensor) -> Tensor:
    """Return the mean of values ``[batch]``, each times what it weighs."""
    return amount * values.mean() if isinstance(amount, float) else weighted(amount, values).mean()


def weighted(amount: Amount, values: Tensor) -> Tensor:
    """Return values ``[batch]``, each times what it weighs."""
    return (amount if isinstance(amount, float) else like(amount, values)) * values


def like(amount: Amount, values: Tensor) -> Tensor:
    """Return an amount with the precision and the place of values."""
    return torch.as_tensor(amount, dtype=values.dtype, device=values.device)


def mean_of_others(policy: Policy, draw: Draw, values: Tensor, global_mean: GlobalMean) -> Tensor:
    """Return the mean of values ``[batch]`` over the others of the prompt, or else over the others of the batch.

    It never holds the sample, nor one with its noise of opposite sign. Asks for one mean.
    """
    count = draw.count or len(draw)
    places = torch.arange(draw.first, draw.first + len(draw), device=values.device)
    units = places // 2 if policy.paired_samples else places
    alike = units[:, None] == units  # [batch, batch], true of a sample and itself
    total = global_mean(values.mean()) * count
    others = (total - alike.to(values.dtype) @ values) / max(count - int(alike[0].sum()), 1)
    if draw.prompts is None:
        return others
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(draw.prompts))}
    asked = torch.tensor([numbers[prompt] for prompt in draw.prompts], device=values.device)
    beside = ((asked[:, None] == asked) & ~alike).to(values.dtype)
    known = beside.sum(dim=1)
    return torch.where(known > 0, beside @ values / known.clamp(min=1), others)
