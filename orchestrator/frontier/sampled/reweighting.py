"""Samples of all sources, weighed as samples of the pretrained model by the density ratios of their paths.

Whatever a policy learned, ``exp(−log_ratio)`` makes samples of its paths samples of the pretrained model's: nothing is
assumed of its multipliers. Which sources tell most depends on the λ that is looked at: near 0 the pretrained model,
further out the trials that went there. So samples are weighed for one λ (``near``), a prediction is made with them, and
its λ is where they are weighed for next, until nothing moves; beyond the samples that is as far as they go, and the
trials that are found there may lead on.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.paths import PathSamples, Pool, starts
from orchestrator.frontier.paths.held import shares_at
from orchestrator.frontier.sampled.samples import REPLICATES, Samples, resampled

FloatArray = NDArray[np.float64]
Found = TypeVar("Found")

_ROUNDS = 8
"""Times that samples are weighed for one prediction."""
_SAME = 0.02
"""Change of shares that makes no difference."""


class Reweighting:
    """Samples of several sources, to be weighed for one λ after another."""

    def __init__(
        self, sources: Sequence[PathSamples], *, seed: int = 0, replicates: int = REPLICATES
    ) -> None:
        """Gather the samples.

        Args:
            sources: The pretrained model, and trials.
            seed: Of the replicates.
            replicates: Of the bootstrap, their number.

        Raises:
            ValueError: See ``paths``; also for a prompt with a single independent unit.
        """
        self._pool = pool = Pool.of(sources)
        counts = pool.unit_counts
        if counts.min() < 2:
            raise ValueError(
                f"prompt {pool.labels[counts.argmin()]} has a single independent sample; its bias can be corrected "
                f"from 2 on"
            )
        self._whole = pool.subset(np.ones(len(pool.prompts), dtype=np.bool_), pool.rewards)
        rng = np.random.default_rng(seed)
        self._replicates = np.concatenate(
            [resampled(int(count), replicates, rng) for count in counts], axis=1
        )  # [B, units]
        self.count, self.prompts = len(pool.rewards), len(pool.labels)

    def shares(self, tilt: FloatArray | None, before: FloatArray | None = None) -> FloatArray:
        """Shares ``[K]`` of the sources at λ ``[m]``, nats per reward unit, inversely to the variance of each.

        None is the pretrained model's λ, 0.
        """
        at = np.zeros(self._pool.rewards.shape[1]) if tilt is None else tilt
        return shares_at(self._whole, at, before)

    def weighed(self, shares: FloatArray) -> Samples:
        """Samples of the sources that have a share, as samples of the pretrained model."""
        kept, masses = self._whole.of(shares)
        first = np.flatnonzero(np.diff(kept.units, prepend=-1))
        if (np.bincount(kept.prompts[first]) < 2).any():  # too few are left of a prompt
            kept, masses = self._whole.of(np.ones(len(shares)))
            first = np.flatnonzero(np.diff(kept.units, prepend=-1))
        return Samples(
            rewards=kept.rewards,
            log_weights=np.log(masses) - kept.log_ratio,
            masses=masses,
            prompt_starts=starts(kept.prompts),
            block_starts=first.astype(np.int64),
            replicates=self._replicates[:, kept.units[first]],
        )


def settled(
    samples: Samples | Reweighting, find: Callable[[Samples], Found], tilt: Callable[[Found], FloatArray]
) -> Found:
    """Predict, weigh the samples for where that is, and predict again, until nothing moves.

    Args:
        samples: Of the pretrained model alone they need no weighing.
        find: From samples to a prediction.
        tilt: Its λ ``[m]``, nats per reward unit.
    """
    if isinstance(samples, Samples):
        return find(samples)
    shares = samples.shares(None)
    found = find(samples.weighed(shares))
    for _ in range(_ROUNDS):
        moved = samples.shares(tilt(found), shares)
        if float(np.abs(moved - shares).max()) < _SAME:
            break
        shares = moved
        found = find(samples.weighed(shares))
    return found
