"""Attributes of an image that need no weights: brightness, contrast, saturation, colourfulness; edges and colours.

Each is a formula on pixels in [0, 1]. All but the last two, which count, have finite gradients everywhere, grey and
black images among them: roots are taken as ``√(x² + δ²) − δ``, which is 0 at 0 and differs from ``|x|`` by at most
δ = 1e-4.
"""

from collections.abc import Sequence
from math import ceil, log
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainers.rewards.images import checked
from trainers.rewards.together import once

_DELTA = 1e-4
_EDGE = 0.1  # of luma per pixel
_BINS = 8  # of each colour
_DARK = 1e-2  # saturation of a pixel fades out where its largest channel is of this size


class Attribute:
    """An attribute of each image; with the aim ``low`` its negative, so that higher is better."""

    def __init__(self, aim: Literal["high", "low"] = "high") -> None:
        """Take the aim.

        Raises:
            ValueError: another aim.
        """
        if aim not in ("high", "low"):
            raise ValueError(f"aim must be high or low, got {aim!r}")
        self._sign = 1.0 if aim == "high" else -1.0

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:  # noqa: ARG002 - the same for all
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        return self._sign * self._measure(checked(samples))

    def _measure(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class Brightness(Attribute):
    """Mean luma, ``Y = 0.2126 R + 0.7152 G + 0.0722 B`` (Rec. 709): 0 black, 1 white."""

    def _measure(self, images: Tensor) -> Tensor:
        return luma(images).mean(dim=(1, 2))


class GlobalContrast(Attribute):
    """Standard deviation of luma over the image (RMS contrast): at most 0.5."""

    def _measure(self, images: Tensor) -> Tensor:
        return _root(luma(images).var(dim=(1, 2), correction=0))


class LocalContrast(Attribute):
    """Mean of ``|Y − G_σ * Y|``: how much a pixel's luma differs from its Gaussian surroundings.

    The kernel reaches 2σ; the border is reflected.
    """

    def __init__(self, aim: Literal["high", "low"] = "high", sigma: float = 1.0) -> None:
        """Take the aim and σ, pixels.

        Raises:
            ValueError: another aim, or a σ that is not positive.
        """
        super().__init__(aim)
        if sigma <= 0:
            raise ValueError(f"sigma must be > 0, got {sigma}")
        reach = ceil(2.0 * sigma)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
        self._kernel = weights / weights.sum()  # [2 · reach + 1]
        self._reach = reach

    def _measure(self, images: Tensor) -> Tensor:
        grey = luma(images)[:, None]  # [batch, 1, h, w]
        if self._reach >= min(grey.shape[-2:]):
            raise ValueError(
                f"surroundings of {self._reach} pixels need larger images than "
                f"{grey.shape[-2]}×{grey.shape[-1]}: lower sigma"
            )
        kernel = self._kernel.to(grey)
        around = functional.pad(grey, (self._reach,) * 4, mode="reflect")
        around = functional.conv2d(around, kernel[None, None, :, None])
        around = functional.conv2d(around, kernel[None, None, None, :])
        return _root((grey - around).square()).mean(dim=(1, 2, 3))


class Saturation(Attribute):
    """Mean saturation of the pixels, ``(max − min) / max`` as in HSV: 0 grey, 1 pure colour.

    The quotient is unbounded in slope at black, where saturation has no meaning; its denominator is
    ``max + 0.01 (1 − max)``.
    """

    def _measure(self, images: Tensor) -> Tensor:
        largest, smallest = images.amax(dim=1), images.amin(dim=1)  # [batch, h, w]
        floor = largest.clamp(0.0, 1.0)
        return ((largest - smallest) / (floor + _DARK * (1.0 - floor))).mean(dim=(1, 2))


class Colourfulness(Attribute):
    """Hasler & Suesstrunk, "Measuring colourfulness in natural images" (2003), on pixels in [0, 1].

    ``√(σ_rg² + σ_yb²) + 0.3 √(μ_rg² + μ_yb²)`` with ``rg = R − G`` and ``yb = (R + G)/2 − B``; the paper's figures,
    on pixels in [0, 255], are 255 times as large.
    """

    def _measure(self, images: Tensor) -> Tensor:
        red, green, blue = images.unbind(dim=1)
        opponent = torch.stack([red - green, 0.5 * (red + green) - blue], dim=1).flatten(
            2
        )  # [batch, 2, pixels]
        spread = opponent.var(dim=2, correction=0).sum(dim=1)
        centre = opponent.mean(dim=2).square().sum(dim=1)
        return _root(spread) + 0.3 * _root(centre)


class EdgeDensity(Attribute):
    """Share of the pixels at an edge: where luma changes by more than 0.1 per pixel, by Sobel's gradient.

    A count: it has no slope. The border is reflected.
    """

    differentiable = False

    @torch.no_grad()
    def _measure(self, images: Tensor) -> Tensor:
        grey = functional.pad(luma(images)[:, None], (1, 1, 1, 1), mode="reflect")
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(grey) / 8.0
        slopes = functional.conv2d(grey, torch.stack([across, across.T])[:, None])  # [batch, 2, h, w]
        return (slopes.square().sum(dim=1) > _EDGE**2).float().mean(dim=(1, 2))


class ColourEntropy(Attribute):
    """Entropy of the colours of an image, bits, in 8 × 8 × 8 bins of RGB: 0 of one colour, at most 9.

    A count: it has no slope.
    """

    differentiable = False

    @torch.no_grad()
    def _measure(self, images: Tensor) -> Tensor:
        bins = (images * _BINS).long().clamp(0, _BINS - 1)  # [batch, 3, h, w]
        places = ((bins[:, 0] * _BINS + bins[:, 1]) * _BINS + bins[:, 2]).flatten(1)
        counts = torch.zeros(len(images), _BINS**3, device=images.device)
        counts.scatter_add_(1, places, torch.ones_like(places, dtype=counts.dtype))
        shares = counts / places.shape[1]
        entropy: Tensor = -torch.special.xlogy(shares, shares).sum(dim=1) / log(2.0)
        return entropy


def luma(images: Tensor) -> Tensor:
    """Return the luma ``[batch, h, w]`` of images, with the weights of Rec. 709 on the stored values."""

    def weighed() -> Tensor:
        red, green, blue = images.unbind(dim=1)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    return once("luma", luma, images, weighed)


def _root(square: Tensor) -> Tensor:
    return torch.sqrt(square + _DELTA**2) - _DELTA
