"""Rewards of points in the plane (or any dimension) whose exponential tilts are known in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Linear:
    """``r(x) = direction · x``."""

    def __init__(self, direction: Sequence[float]) -> None:
        """Take the direction, ``[d]``."""
        self._direction = torch.tensor(tuple(direction), dtype=torch.float32)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:  # noqa: ARG002 - a point has none
        """Score samples ``[batch, d]``."""
        return samples @ self._direction.to(samples)


class Quadratic:
    """``r(x) = −scale · ‖x − center‖²``, at most 0."""

    def __init__(self, center: Sequence[float], scale: float = 1.0) -> None:
        """Take the center ``[d]`` and the scale, > 0.

        Raises:
            ValueError: the scale is not positive.
        """
        if scale <= 0:
            raise ValueError(f"scale must be > 0, got {scale}")
        self._center = torch.tensor(tuple(center), dtype=torch.float32)
        self._scale = float(scale)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:  # noqa: ARG002 - a point has none
        """Score samples ``[batch, d]``."""
        return -self._scale * (samples - self._center.to(samples)).square().sum(dim=-1)
