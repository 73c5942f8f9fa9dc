"""What ``black_box.py`` trains on: whether a picture is vivid, which counts pictures, and the twin that has a slope."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainers.rewards.attributes import Saturation

VIVID = 0.75
"""Mean saturation from which a picture is vivid: three in ten of the pretrained model's are."""


class Vivid:
    """1 where the mean saturation of a picture is at least ``VIVID``, 0 elsewhere."""

    differentiable = False

    def __init__(self) -> None:
        """Take nothing."""
        self._measure = Saturation()

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:  # noqa: ARG002 - the same for all
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        return (self._measure(samples) >= VIVID).float()


class ProbablyVivid:
    """Probability of the same by a classifier of some ``width``, of saturation: a logistic function."""

    def __init__(self, width: float = 0.05) -> None:
        """Take the width, of saturation."""
        self._measure, self._width = Saturation(), width

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:  # noqa: ARG002 - the same for all
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        return torch.sigmoid((self._measure(samples) - VIVID) / self._width)
