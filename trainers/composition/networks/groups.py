"""Samples in groups that share a prompt, drawn in chunks and put together: what measures on paths have in common.

Groups are independent: a mean's standard error is that between groups, their prompts included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainers.composition.measure import Measured, Samples
from trainers.composition.networks.chains import Chains
from trainers.composition.networks.dealing import Deal
from trainers.composition.networks.judges import Judge
from trainers.composition.networks.particles import grouped
from trainers.estimates import between_groups, without_noise
from trainers.evaluate import SHOWN, pixels
from trainers.models.base import Draw
from trainers.types import FloatArray, ImageArray
from trainers.workers.collective import Collective, Shard
from trainers.workers.memory import Batches


@dataclass(frozen=True, kw_only=True)
class Part:
    """What ``G`` groups of ``n`` samples came to, float64."""

    kl: Tensor
    """``[m, G]``, nats."""
    rewards: Tensor
    """``[R, G]``"""
    curvature: Tensor
    """``[G, m + R, m + R]``, or only the block of the models."""
    variance: Tensor
    """``[G]``, of a group's mean, in units of one independent sample's."""
    images: Tensor
    """``[G n, …]``, as drawn."""
    scores: Tensor
    """``[R, G, n]``, as drawn."""
    kept: Tensor
    """``[G, n]``, places of the equally weighted samples."""
    noise: Tensor | None = None
    """``[m, G]``, of expectation 0: a control variate of ``kl``."""
    log_partition: Tensor | None = None
    """``[G]``, nats; of a product."""
    sample_kl: Tensor | None = None
    """``[m, G, n]``, where nothing is resampled."""
    sample_ratio: Tensor | None = None
    """``log p/q_i``, ``[m, G, n]``, as drawn, where ``log Z`` is not part of it."""


class PathMeasure:
    """Draws in chunks of whole groups, and puts them together."""

    estimator: str
    apart = np.inf  # KLs of concepts are hundreds of nats, and their chains still meet
    cost = 1.0
    """Of the network evaluations of all models: those that a sample takes."""
    corrected = False
    """Whether samples are weighted, and ``log Z`` is known."""
    keeps_kl = False
    """Whether samples have KLs of their own."""

    def __init__(self, chains: Chains, judge: Judge, size: int) -> None:
        """Take the models, what scores their samples, and how many samples a group has."""
        self.chains, self.judge, self.size = chains, judge, size
        self.batches = Batches(chains.chunk, "the composition")
        """Halved where the memory is too small."""

    def part(
        self, weights: Tensor, tilt: Tensor, draw: Draw, first: int, generators: Sequence[torch.Generator]
    ) -> Part:
        """Measure the groups of a draw, numbered from ``first``, each with a generator of its own."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self,
        weights: FloatArray,
        tilt: FloatArray,
        count: int,
        seed: int,
        *,
        held_out: bool = False,
        share: Collective | Shard | None = None,
    ) -> Measured:
        """Measure with ``count`` samples, rounded up to whole groups.

        Args:
            weights: ``λ``, ``[m]``.
            tilt: ``μ``, ``[R]``.
            count: Samples.
            seed: Of noise and resampling, and of the order of training prompts.
            held_out: Use the held-out prompts.
            share: Workers between which the chunks are divided. Of a ``Shard`` only ``samples`` can be used: rows of
                the others are zeros.

        Raises:
            ValueError: The weights leave the simplex, or this composition cannot be tilted.
            OutOfMemory: The memory does not hold one group.
        """
        if weights.min() < 0 or abs(weights.sum() - 1) > 1e-6:
            raise ValueError(f"weights of models must be >= 0 with sum 1, got {weights.tolist()}")
        share = Collective() if share is None else share
        models, rewards, size = self.chains.count, self.judge.count, self.size
        groups, features = -(-count // size), models + rewards
        table = torch.zeros(groups, models + features + 2, dtype=torch.float64)
        curvature = torch.zeros(groups, features, features, dtype=torch.float64)
        rows = torch.zeros(features + models, groups, size, dtype=torch.float64)  # KLs, scores, log ratios
        places = torch.arange(size).expand(groups, size)
        moved = torch.zeros_like(places)  # from where an equally weighted sample comes
        images = list[ImageArray]()

        dealt = Deal(self.chains, groups, size, seed, held_out=held_out, share=share)
        for start, draw in dealt:
            measure = partial(self._groups, torch.tensor(weights), torch.tensor(tilt), draw, seed, start)
            first = start
            for part in self.batches(len(draw) // size, measure, each=size):
                here = slice(first, first + len(part.variance))
                noise = torch.zeros_like(part.kl) if part.noise is None else part.noise
                mass = torch.zeros_like(part.variance) if part.log_partition is None else part.log_partition
                table[here] = torch.stack([*noise, *part.kl, *part.rewards, mass, part.variance], dim=1)
                block = slice(part.curvature.shape[1])
                curvature[here, block, block] = part.curvature
                rows[models:features, here] = part.scores.gather(2, part.kept.expand_as(part.scores))
                if part.sample_kl is not None:
                    rows[:models, here] = part.sample_kl
                if part.sample_ratio is not None:
                    rows[features:, here] = part.sample_ratio.gather(
                        2, part.kept.expand_as(part.sample_ratio)
                    )
                moved[here] = part.kept - places[here]
                if start == 0:
                    images += _shown(part, SHOWN - first * size)
                first = here.stop

        found, sums = share.sum(table).numpy(), share.sum(rows).flatten(1).numpy()
        kept = (torch.arange(groups)[:, None] * size + places + share.sum(moved)).flatten().numpy()
        kl = without_noise(found[:, models : 2 * models], found[:, :models])
        means, errors = between_groups(np.concatenate([kl, found[:, 2 * models : -2]], axis=1))
        return Measured(
            kl=means[:models],
            kl_error=errors[:models],
            rewards=means[models:],
            reward_error=errors[models:],
            curvature=share.sum(curvature).mean(dim=0).numpy(),
            dual=-float(found[:, -2].mean()) if self.corrected else float(weights @ means[:models]),
            scores=sums[models:features],
            log_ratio=None if self.corrected else sums[features:],
            degrees=max(groups - 1, 1),
            effective_samples=groups**2 / max(float(found[:, -1].sum()), 1e-12),
            acceptance=None,
            evaluations=self.chains.evaluations * self.cost,
            samples=Samples(
                kl=sums[:models] if self.keeps_kl else None,
                seeds=dealt.seeds[kept],
                prompts=dealt.prompts,  # a group has one
                images=np.concatenate(images) if images else None,
            ),
        )

    def _groups(
        self, weights: Tensor, tilt: Tensor, draw: Draw, seed: int, start: int, first: int, last: int
    ) -> Part:
        """Measure groups ``first`` to ``last`` of a draw, whose own first is numbered ``start``."""
        generators = [_generator(seed, start + number) for number in range(first, last)]
        part = draw.part(first * self.size, last * self.size)
        return self.part(weights, tilt, part, start + first, generators)

    def scores(self, images: Tensor, draw: Draw) -> Tensor:
        """Return ``[R, G, n]``."""
        if self.judge.count == 0:
            return grouped(torch.zeros(0, len(draw)), self.size)
        return grouped(self.judge(images, draw.prompts), self.size)


def _generator(seed: int, group: int) -> torch.Generator:
    """Return the generator of a group's resampling: of no other group, and not of any noise."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, group)).generate_state(1)[0]))


def _shown(part: Part, count: int) -> list[ImageArray]:
    """Return the first ``count`` equally weighted images; none where samples are no images."""
    if part.images.ndim != 4 or count <= 0:
        return []
    groups, size = part.kept.shape
    rows = (torch.arange(groups)[:, None] * size + part.kept).flatten()[:count]
    return [pixels(part.images[rows.to(part.images.device)])]
