"""Samples some at a time: halved where the memory is too small, in order, once each, until one does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.failures import OutOfMemory
from trainers.workers.collective import Collective, Shard
from trainers.workers.memory import Batches, fits

FULL = torch.OutOfMemoryError("CUDA out of memory.")


@given(count=st.integers(1, 200), size=st.integers(1, 64), limit=st.integers(1, 64), each=st.integers(1, 9))
def test_every_item_is_computed_once_and_in_order(count: int, size: int, limit: int, each: int) -> None:
    """With a memory that holds ``limit`` items, or one at least."""
    batches, tried, seen = Batches(size, "the test"), list[int](), list[int]()

    def compute(first: int, last: int) -> list[int]:
        tried.append(last - first)
        if last - first > limit:
            raise FULL
        return list(range(first, last))

    for found in batches(count, compute, each=each):
        seen += found
    assert seen == list(range(count))
    assert max(tried) <= max(1, size // each)
    assert sum(number > limit for number in tried) <= 6  # halved, and remembered
    halved = min(count, max(1, size // each)) > limit
    assert len(batches.notes(Collective())) == halved
    assert halved == bool(Batches.notes(batches, Shard(1, 3)))


def test_the_note_has_what_was_tried_and_what_to_write() -> None:
    def compute(first: int, last: int) -> int:
        if last - first > 9:
            raise MemoryError
        return last - first

    batches = Batches(32, "the evaluation")
    assert list(batches(20, compute)) == [5, 5, 5, 5]
    (note,) = batches.notes(Collective())
    assert note == (
        "out of memory in the evaluation with 32 samples at a time: went on with 5, which changes no result; "
        "evaluation.batch: 5 begins with them"
    )


def test_one_that_does_not_fit_is_the_end_with_advice() -> None:
    def compute(first: int, last: int) -> None:
        del first, last
        raise FULL

    with pytest.raises(OutOfMemory, match=r"out of memory in the evaluation, .*resources.gpus_per_worker"):
        list(Batches(32, "the evaluation")(3, compute))


def test_other_errors_are_none_of_this() -> None:
    def wrong() -> None:
        raise RuntimeError("The size of tensor a must match")

    with pytest.raises(RuntimeError, match="size of tensor"):
        fits(wrong)
