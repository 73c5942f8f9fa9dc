"""In which order prompts take turns: any number of first ones is a fair share of all.

A file of prompts is sorted by category more often than not, and an evaluation may have fewer images than prompts. So
the order is a random permutation that is stratified: prompts are split in two, by metadata that they share and else by
their place in the file, and so on to single ones; then halves are put together so that of the first ``n`` of a block of
``S``, its half of ``s`` has ``⌊(n s + U) / S⌋``, ``U`` uniform on ``0 … S − 1``. That is ``n s / S`` on average
(Hermite's identity), so every prompt is among the first ``n`` of ``S`` with probability ``n / S``, and no half is as
much as one prompt from its share (systematic sampling, Cochran 1977, ch. 8, at every split).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

Column = tuple[str | None, ...]


@lru_cache(maxsize=32)
def turns(count: int, seed: int, columns: tuple[Column, ...] = ()) -> tuple[int, ...]:
    """Return the order of ``count`` prompts.

    Args:
        count: How many.
        seed: Of the permutation.
        columns: Metadata, one value for each prompt. Those whose values are shared by two prompts or more on average
            are strata, beginning with the column of the fewest.
    """
    shared = sorted((_numbered(column) for column in columns if 2 <= len(set(column)) <= count / 2), key=max)
    labels = [tuple(column[place] for column in shared) for place in range(count)]
    rng = np.random.default_rng(seed)

    def ordered(block: Sequence[int]) -> list[int]:
        size = len(block)
        if size < 2:
            return list(block)
        middle = _split([labels[place] for place in block])
        first, second = ordered(block[:middle]), ordered(block[middle:])
        shift = int(rng.integers(size))
        taken = [(n * middle + shift) // size for n in range(size + 1)]
        return [
            first[before] if after > before else second[n - before]
            for n, (before, after) in enumerate(pairwise(taken))
        ]

    return tuple(ordered(sorted(range(count), key=lambda place: (labels[place], place))))


def _numbered(column: Column) -> tuple[int, ...]:
    """Return the number of every value, in the order in which they come first."""
    known: dict[str | None, int] = {}
    return tuple(known.setdefault(value, len(known)) for value in column)


def _split(labels: Sequence[tuple[int, ...]]) -> int:
    """Return where sorted labels are split: nearest to the middle where the first column changes that does."""
    middle = len(labels) // 2
    first, last = labels[0], labels[-1]
    changing = next(
        (at for at, (one, other) in enumerate(zip(first, last, strict=True)) if one != other), None
    )
    if changing is None:
        return middle
    bounds = [n for n in range(1, len(labels)) if labels[n][changing] != labels[n - 1][changing]]
    return min(bounds, key=lambda n: abs(2 * n - len(labels)))
