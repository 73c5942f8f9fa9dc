"""Strips of images as PNG, for folders and reports."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.types import ImageArray

_SMALL = 96
"""Images narrower than this are enlarged, or nobody sees anything."""


def strip(images: ImageArray, above: bytes | None = None) -> bytes:
    """Return a PNG with images ``[n, h, w, 3]`` in one row, below the row of another PNG if there is one."""
    row = _enlarged(np.concatenate(list(images), axis=1), images.shape[2])
    if above is not None:
        with Image.open(io.BytesIO(above)) as picture:
            other = np.asarray(picture.convert("RGB"))
        width = max(row.shape[1], other.shape[1])
        row = np.concatenate([_padded(other, width), _padded(row, width)], axis=0)
    out = io.BytesIO()
    Image.fromarray(row).save(out, format="PNG", optimize=True)
    return out.getvalue()


def _enlarged(pixels: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Repeat pixels until an image of ``width`` can be seen."""
    factor = -(-_SMALL // width)
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _padded(pixels: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(pixels, ((0, 0), (0, width - pixels.shape[1]), (0, 0)), constant_values=255)
