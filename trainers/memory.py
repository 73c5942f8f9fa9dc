"""When memory runs out: whether something fits, found out by all workers alike, to go on in smaller parts."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from trainers.collective import Collective

T = TypeVar("T")


class _Elsewhere(Exception):  # noqa: N818 - says what happened
    """The memory of another worker ran out."""


def fits(compute: Callable[[], T]) -> T | None:
    """Return what ``compute`` returns, or None if the memory did not hold it; then what it took is free again."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # Outside the handler, whose traceback holds on to the memory of the attempt.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class Attempt:
    """One attempt of all workers at a computation in which each may ask for means over all of them.

    A worker whose memory runs out says so in place of its next message, and all send one more when they are done. So
    nobody waits for a worker that gave up, whenever it did, and all know that the memory of one was too small. That
    takes equally many means on every worker.
    """

    def __init__(self, collective: Collective) -> None:
        """Take the workers."""
        self._collective = collective

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over workers of a scalar, without gradient.

        Raises:
            _Elsewhere: another worker gave up.
        """
        if self._collective.world_size == 1:
            return value.detach()
        return (self._exchange(value, failed=False) / self._collective.world_size).to(value)

    def __call__(self, compute: Callable[[], T]) -> T | None:
        """Return what ``compute`` returns here; None on every worker if the memory of any did not hold it."""
        try:
            found = fits(compute)
            if self._collective.world_size > 1:
                self._exchange(torch.zeros(()), failed=found is None)
        except _Elsewhere:
            return None
        return found

    def _exchange(self, value: Tensor, *, failed: bool) -> Tensor:
        """Return the sum of a value; every message has one form, as those of one worker may meet others of another."""
        own = torch.stack([value.detach().double().cpu(), torch.tensor(float(failed), dtype=torch.float64)])
        total = self._collective.sum(own)
        if total[1] > 0:
            raise _Elsewhere
        return total[0]


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate: on a GPU it has a class of its own, on a CPU only words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
