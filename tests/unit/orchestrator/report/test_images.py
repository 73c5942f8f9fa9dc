"""Strips hold every image, pixel for pixel, small ones enlarged."""

import io

import numpy as np
import pytest
from PIL import Image

from orchestrator.report.images import strip
from trainers.types import ImageArray


def noise(count: int, size: int) -> ImageArray:
    return np.random.default_rng(size).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def opened(png: bytes) -> ImageArray:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


@pytest.mark.parametrize(("size", "factor"), [(1, 96), (32, 3), (64, 2), (95, 2), (96, 1), (128, 1)])
def test_images_stand_side_by_side_and_can_be_seen(size: int, factor: int) -> None:
    images = noise(3, size)
    picture = opened(strip(images))
    assert picture.shape == (size * factor, 3 * size * factor, 3)
    assert np.array_equal(picture[::factor, ::factor], np.concatenate(list(images), axis=1))
    assert np.array_equal(picture[factor - 1 :: factor, factor - 1 :: factor], picture[::factor, ::factor])


@pytest.mark.parametrize(("above", "below"), [(2, 3), (3, 2), (2, 2)])
def test_a_row_goes_above_another_and_the_shorter_ends_in_white(above: int, below: int) -> None:
    first, second = noise(above, 96), noise(below, 96)[:, ::-1]
    picture = opened(strip(second, above=strip(first)))
    assert picture.shape == (2 * 96, max(above, below) * 96, 3)
    assert np.array_equal(picture[:96, : above * 96], np.concatenate(list(first), axis=1))
    assert np.array_equal(picture[96:, : below * 96], np.concatenate(list(second), axis=1))
    assert (picture[:96, above * 96 :] == 255).all()
    assert (picture[96:, below * 96 :] == 255).all()
