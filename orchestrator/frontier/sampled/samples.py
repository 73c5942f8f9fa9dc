"""Samples of the pretrained model, with weights and resampled weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.frontier.paths import SampleTable, starts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

REPLICATES = 400
BLOCKS = 4096
"""At most about so many blocks in all: with more, jackknife and bootstrap only get slower."""
LEAST_BLOCKS = 64
"""But up to so many in each prompt."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Weighted samples of the pretrained model; made by ``pretrained_samples`` and by ``reweighting``.

    Samples of a prompt stand together, and those of a block within it.
    """

    rewards: FloatArray
    """``[n, m]``, reward units."""
    log_weights: FloatArray
    """``[n]``; of the pretrained model's samples the weights sum to 1 in each prompt, with those of trials among them
    they do so on the average."""
    masses: FloatArray
    """``[n]``, what the weights would be if all density ratios were 1: they sum to 1 in each prompt."""
    prompt_starts: IntArray
    """``[P]``, the first sample of each prompt."""
    block_starts: IntArray
    """``[U]``, the first sample of each block. Blocks of a prompt are independent of each other."""
    replicates: FloatArray
    """``[B, U]``, factors on the weights that stand for other draws of the samples."""

    @property
    def count(self) -> int:
        """Their number n."""
        return len(self.rewards)

    @property
    def prompts(self) -> int:
        """That of their prompts, P."""
        return len(self.prompt_starts)


def pretrained_samples(
    rewards: ArrayLike,
    prompts: ArrayLike | None = None,
    *,
    units: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Samples:
    """Arrange samples of the pretrained model, equally weighted within each prompt.

    Args:
        rewards: ``[n, m]``, reward units.
        prompts: ``[n]``, any integer labels; None: one prompt for all.
        units: ``[n]``, integers; samples of a prompt with the same number depend on each other, as antithetic
            pairs do. None: all are independent.
        seed: Of the replicates.
        replicates: Their number B.

    Raises:
        ValueError: Not finite, of wrong shapes, or a prompt with fewer than two independent samples.
    """
    table = SampleTable.checked(rewards, prompts, units).sorted()
    limit = max(LEAST_BLOCKS, BLOCKS // len(table.starts))
    blocks = np.empty(len(table.units), dtype=np.int64)
    for index, (part, rank) in enumerate(zip(table.slices(), table.unit_ranks(), strict=True)):
        count = int(rank.max()) + 1
        blocks[part] = index * limit + rank * min(count, limit) // count
    block_starts = starts(blocks)
    sizes = np.diff(np.searchsorted(block_starts, table.starts), append=len(block_starts))
    counts = np.diff(table.starts, append=len(blocks))
    rng = np.random.default_rng(seed)
    masses = 1.0 / np.repeat(counts, counts)
    return Samples(
        rewards=table.rewards,
        log_weights=np.log(masses),
        masses=masses,
        prompt_starts=table.starts,
        block_starts=block_starts,
        replicates=np.concatenate([resampled(int(size), replicates, rng) for size in sizes], axis=1),
    )


def resampled(count: int, replicates: int, rng: np.random.Generator) -> FloatArray:
    """How often each of ``count`` is drawn in ``count`` − 1 draws with replacement, ``[B, count]``.

    As many draws as there are understate the variance by the factor 1 − 1/count, which shows with few samples
    per prompt (Rao & Wu 1988, "Resampling inference with complex survey data").
    """
    return rng.multinomial(count - 1, np.full(count, 1.0 / count), size=replicates).astype(np.float64)
