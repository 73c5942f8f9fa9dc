"""The covariance of rewards, with the names that its rows and columns stand for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.types import FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardCovariance:
    """Asked by names only, so no order can be mistaken for another."""

    names: tuple[str, ...]
    values: FloatArray
    """``[R, R]`` in the order of the names, reward units."""

    def __post_init__(self) -> None:
        """Check that the names are those of the matrix.

        Raises:
            ValueError: their number differs from its size, or a name stands twice.
        """
        count = len(self.names)
        if self.values.shape != (count, count) or len(set(self.names)) < count:
            raise ValueError(f"a covariance of {self.names} has no shape {self.values.shape}")

    def between(self, rows: Sequence[str], columns: Sequence[str]) -> FloatArray:
        """Return the covariance of some rewards with others, ``[rows, columns]``.

        Raises:
            ValueError: it does not know one of them.
        """
        found = [[self.names.index(name) for name in names] for names in (rows, columns)]
        return np.asarray(self.values[np.ix_(*found)])
