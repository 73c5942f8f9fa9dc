"""From pixels in [0, 1] to what a pretrained image encoder expects, with gradients.

The library's image processors work on 8-bit images and cut the gradient. Here the same resize (antialiased, PIL's
kernels), crop and normalisation run on tensors; the result differs by the rounding to 8 bits only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_MODES = {2: "bilinear", 3: "bicubic"}  # by PIL's number
_ROUNDING = 1e-4  # a flat white area stays within: its gradient is not cut by the clamp


def checked(samples: Tensor) -> Tensor:
    """Return images ``[batch, 3, h, w]`` in float32.

    Raises:
        ValueError: another shape.
    """
    if samples.ndim != 4 or samples.shape[1] != 3:
        raise ValueError(f"an image reward scores [batch, 3, height, width], got {tuple(samples.shape)}")
    return samples.float()


def checked_prompts(reward: str, samples: Tensor, prompts: Sequence[str] | None) -> Sequence[str]:
    """Return one prompt per image.

    Raises:
        ValueError: there are none, or another number of them.
    """
    if prompts is None or len(prompts) != len(samples):
        raise ValueError(
            f"reward {reward!r} needs one prompt per image: {len(samples)} images, "
            f"{'no' if prompts is None else len(prompts)} prompts"
        )
    return prompts


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize, crop, normalise: each once, in this order."""

    shortest_edge: int | None = None
    """Edge to resize to, pixels, with the proportions kept."""
    size: tuple[int, int] | None = None
    """``(height, width)`` to resize to, proportions not kept; used when there is no ``shortest_edge``."""
    crop: tuple[int, int] | None = None
    """``(height, width)`` of the central crop."""
    mode: str = "bicubic"
    mean: tuple[float, ...] | None = CLIP_MEAN
    """Per channel, of images in [0, 1]; None leaves them in [0, 1]."""
    std: tuple[float, ...] | None = CLIP_STD

    @classmethod
    def clip(cls, edge: int = 224) -> Self:
        """Return CLIP's own settings."""
        return cls(shortest_edge=edge, crop=(edge, edge))

    @classmethod
    def from_processor(cls, processor: Any) -> Self:
        """Return the settings of an image processor of the library.

        Raises:
            ValueError: it resizes in a way that is not supported.
        """
        size = _plain(processor.size) if processor.do_resize else {}
        crop = _plain(processor.crop_size) if getattr(processor, "do_center_crop", None) else {}
        if processor.do_resize and not ({"shortest_edge"} == set(size) or {"height", "width"} == set(size)):
            raise ValueError(f"an image processor resizes to shortest_edge or height and width, got {size}")
        if int(processor.resample) not in _MODES:
            raise ValueError(
                f"resample must be 2 (bilinear) or 3 (bicubic), got {processor.resample} in the processor"
            )
        return cls(
            shortest_edge=size.get("shortest_edge"),
            size=(size["height"], size["width"]) if "height" in size else None,
            crop=(crop["height"], crop["width"]) if crop else None,
            mode=_MODES[int(processor.resample)],
            mean=tuple(processor.image_mean) if processor.do_normalize else None,
            std=tuple(processor.image_std) if processor.do_normalize else None,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Turn ``[batch, 3, h, w]`` in [0, 1] into the encoder's input.

        Raises:
            ValueError: the images are smaller than the crop and are not resized.
        """
        height, width = self._resized(*images.shape[-2:])
        if (height, width) != tuple(images.shape[-2:]):
            # Bicubic overshoots at edges. PIL cuts it to 8 bits after each of its two passes; so do we.
            for size in ((images.shape[-2], width), (height, width)):
                images = functional.interpolate(images, size=size, mode=self.mode, antialias=True)
                images = images.clamp(-_ROUNDING, 1.0 + _ROUNDING)
        if self.crop is not None:
            rows, columns = self.crop
            if height < rows or width < columns:
                raise ValueError(f"images of {height}×{width} are smaller than the crop, {rows}×{columns}")
            top, left = (height - rows) // 2, (width - columns) // 2
            images = images[..., top : top + rows, left : left + columns]
        if self.mean is None or self.std is None:
            return images
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]  # [3, 1, 1]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (images - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.shortest_edge is None:
            return self.size or (height, width)
        short, long = min(height, width), max(height, width)
        long = int(self.shortest_edge * long / short)
        return (self.shortest_edge, long) if height <= width else (long, self.shortest_edge)


def _plain(size: Any) -> dict[str, int]:
    """Return a processor's size as a dictionary of what is set."""
    entries = size if isinstance(size, Mapping) else vars(size)
    return {name: int(value) for name, value in entries.items() if value}
