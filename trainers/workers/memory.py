"""When memory runs out: whether something fits, found out by all workers alike, to go on in smaller parts."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from trainers.failures import OutOfMemory, Unscored
from trainers.workers.collective import Collective, Shard

T = TypeVar("T")

_log = logging.getLogger(__name__)


_UNSCORED = 2.0**20
"""Counts a worker without scores, beside those whose memory ran out."""


class _Elsewhere(Exception):  # noqa: N818 - says what happened
    """The memory of another worker ran out."""


class _UnscoredElsewhere(Unscored):
    """Another worker got no scores."""


def fits(compute: Callable[[], T]) -> T | None:
    """Return what ``compute`` returns, or None if the memory did not hold it; then what it took is free again."""
    try:
        return compute()
    except (MemoryError, RuntimeError, OutOfMemory) as error:
        if not _is_out_of_memory(error):
            raise
    # Outside the handler, whose traceback holds on to the memory of the attempt.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class Batches:
    """Computes many samples some at a time: half as many, from then on, whenever the memory does not hold them."""

    def __init__(self, size: int, what: str, *, fixed: bool = False) -> None:
        """Begin with ``size`` samples at a time of ``what``, in the words of a message; ``fixed`` are never fewer."""
        self._begun, self._size, self._what, self._fixed = size, size, what, fixed

    def __call__(self, count: int, compute: Callable[[int, int], T], *, each: int = 1) -> Iterator[T]:
        """Yield what ``compute`` returns of items ``first`` to ``last``, from 0 to ``count`` in order.

        Args:
            count: Items.
            compute: Of some of them.
            each: Samples of an item.

        Raises:
            OutOfMemory: not even one fits.
        """
        first = 0
        while first < count:
            last = min(first + max(1, self._size // each), count)
            found = fits(partial(compute, first, last))
            if found is not None:
                yield found
                first = last
            elif last - first == 1 or self._fixed:
                raise OutOfMemory(self.no_room())
            else:
                self._size = (last - first) // 2 * each
                _log.warning(
                    "out of memory in %s; going on with %d samples at a time", self._what, self._size
                )

    def no_room(self) -> str:
        """Return what to do where the memory does not hold the least there is."""
        return (
            f"out of memory in {self._what}, with as few samples at a time as can be: give a worker more of it "
            "(resources.gpus_per_worker, fewer trials at a time), or let networks take less (training.precision: bf16)"
        )

    def notes(self, workers: Collective | Shard) -> tuple[str, ...]:
        """Return a note where a worker went on with fewer samples at a time; every worker must ask."""
        sizes = torch.zeros(workers.world_size)
        sizes[workers.rank] = self._size
        known = workers.sum(sizes)
        least = int(known[known > 0].min())
        if least == self._begun:
            return ()
        note = (
            f"out of memory in {self._what} with {self._begun} samples at a time: went on with {least}, which changes "
            f"no result; evaluation.batch: {least} begins with them"
        )
        return (note,)


class Attempt:
    """One attempt of all workers at a computation in which each may ask for means over all of them.

    A worker whose memory runs out says so in place of its next message, and all send one more when they are done. So
    nobody waits for a worker that gave up, whenever it did, and all know that the memory of one was too small. That
    takes equally many means on every worker.
    """

    def __init__(self, collective: Collective | Shard) -> None:
        """Take the workers."""
        self._collective = collective

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over workers of a scalar, without gradient.

        Raises:
            _Elsewhere: another worker gave up.
        """
        if self._collective.world_size == 1:
            return value.detach()
        return (self._exchange(value, failed=0.0) / self._collective.world_size).to(value)

    def __call__(self, compute: Callable[[], T]) -> T | None:
        """Return what ``compute`` returns here; None on every worker if the memory of any did not hold it.

        Raises:
            Unscored: on every worker if any of them got no scores.
        """
        if self._collective.in_step:
            return (
                compute()
            )  # the others wait for this worker within their networks: it can only end with its process
        try:
            found = fits(compute)
            if self._collective.world_size > 1:
                self._exchange(torch.zeros(()), failed=float(found is None))
        except _UnscoredElsewhere:
            raise
        except Unscored:
            if self._collective.world_size > 1:
                with suppress(_Elsewhere, _UnscoredElsewhere):
                    self._exchange(torch.zeros(()), failed=_UNSCORED)
            raise
        except _Elsewhere:
            return None
        return found

    def _exchange(self, value: Tensor, *, failed: float) -> Tensor:
        """Return the sum of a value; every message has one form, as those of one worker may meet others of another."""
        own = torch.stack([value.detach().double().cpu(), torch.tensor(failed, dtype=torch.float64)])
        total = self._collective.sum(own)
        if total[1] >= _UNSCORED:
            raise _UnscoredElsewhere(
                "another worker of the trial got no scores of a reward: its log says why"
            )
        if total[1] > 0:
            raise _Elsewhere
        return total[0]


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate: on a GPU it has a class of its own, on a CPU only words."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError | OutOfMemory
    ) or "can't allocate memory" in str(error)
