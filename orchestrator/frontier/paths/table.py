"""Rewards of samples with the labels of their prompts and of the noise that they were drawn from."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SampleTable:
    """Rewards with the labels of their samples."""

    rewards: FloatArray
    """``[n, m]``"""
    prompts: IntArray
    """``[n]``"""
    units: IntArray
    """``[n]``"""

    @classmethod
    def checked(
        cls, rewards: ArrayLike, prompts: ArrayLike | None = None, units: ArrayLike | None = None
    ) -> "SampleTable":
        """Fill in what is None; a ``ValueError`` says what does not fit."""
        values = np.asarray(rewards, dtype=np.float64)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"rewards must be a table [samples, rewards], got the shape {values.shape}")
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(
                f"reward {column} of sample {row} is {values[row, column]}, it must be a finite number"
            )
        count = len(values)
        table = cls(
            rewards=values,
            prompts=np.zeros(count, np.int64) if prompts is None else np.asarray(prompts, dtype=np.int64),
            units=np.arange(count) if units is None else np.asarray(units, dtype=np.int64),
        )
        for name, labels in (("prompts", table.prompts), ("units", table.units)):
            if labels.shape != (count,):
                raise ValueError(f"{name} must be one number for each of {count} samples, got {labels.shape}")
        return table

    @property
    def starts(self) -> IntArray:
        """``[P]``, the first sample of each prompt; of a sorted table."""
        return starts(self.prompts)

    def order(self) -> IntArray:
        """``[n]``, by prompt, then by unit."""
        return np.lexsort((self.units, self.prompts)).astype(np.int64)

    def sorted(self) -> "SampleTable":
        """In that order."""
        order = self.order()
        return SampleTable(rewards=self.rewards[order], prompts=self.prompts[order], units=self.units[order])

    def slices(self) -> list[slice]:
        """Samples of each prompt, of a sorted table."""
        ends = [*self.starts, len(self.prompts)]
        return [slice(int(first), int(last)) for first, last in pairwise(ends)]

    def unit_ranks(self) -> list[IntArray]:
        """Units of each prompt numbered from 0, of a sorted table."""
        ranks = []
        for part in self.slices():
            rank = np.unique(self.units[part], return_inverse=True)[1].astype(np.int64)
            if rank.max() < 1:
                raise ValueError(
                    f"prompt {self.prompts[part.start]} has a single independent sample; its bias can be "
                    f"corrected from 2 on"
                )
            ranks.append(rank)
        return ranks


def starts(labels: IntArray) -> IntArray:
    """Where runs of equal labels begin."""
    return np.flatnonzero(np.diff(labels, prepend=labels[0] - 1)).astype(np.int64)
