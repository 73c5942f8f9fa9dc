"""What several rewards ask about the same images is answered once: an embedding, a conversion of pixels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_Answers = dict[tuple[Any, int, bool], tuple[Any, Tensor]]
_answers: ContextVar[_Answers | None] = ContextVar("answers", default=None)


@contextmanager
def together() -> Iterator[None]:
    """Within the block rewards are scored on the same images; what they share is forgotten after it."""
    outer = _answers.set({})
    try:
        yield
    finally:
        _answers.reset(outer)


def once(kind: str, owner: object, images: Tensor, answer: Callable[[], Tensor]) -> Tensor:
    """Return what ``owner`` answers about these very images, computed once within ``together``.

    Args:
        kind: Of the answer.
        owner: Whose answer it is, such as the network.
        images: What it is about; others that are equal do not count.
        answer: Computes it.
    """
    known = _answers.get()
    if known is None:
        return answer()
    key = ((kind, id(owner)), id(images), torch.is_grad_enabled())
    if key not in known:
        # With both objects: a number stands for one as long as it lives.
        known[key] = ((owner, images), answer())
    return known[key][1]
