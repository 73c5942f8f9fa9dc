"""Preprocessing against the library's own image processors, which work on 8-bit images."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BlipImageProcessorPil, CLIPImageProcessorPil

from trainers.rewards.images import CLIP_MEAN, CLIP_STD, Preprocess

SHARP = torch.rand(3, 3, 61, 45, generator=torch.Generator().manual_seed(2)).mul(255).round().div(255)


def reference(processor: CLIPImageProcessorPil, pictures: Tensor) -> Tensor:
    arrays = [np.asarray(p) for p in (255 * pictures).round().byte().permute(0, 2, 3, 1)]
    return processor(arrays, return_tensors="pt", input_data_format="channels_last")["pixel_values"]


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("edge", [32, 45, 80])
def test_agrees_with_the_clip_processor(resample: int, edge: int) -> None:
    crop = {"height": edge - 4, "width": edge - 8}
    processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=crop, resample=resample)
    ours = Preprocess.from_processor(processor)(SHARP)
    # PIL rounds to 8 bits after each of its two passes: at most 1.5 steps of 1/255, over the smallest std.
    assert (ours - reference(processor, SHARP)).abs().max() <= 1.5 / 255 / min(CLIP_STD)


def test_agrees_with_the_blip_processor() -> None:
    processor = BlipImageProcessorPil(size={"height": 40, "width": 24})
    ours = Preprocess.from_processor(processor)(SHARP)
    assert ours.shape == (3, 3, 40, 24)
    assert (ours - reference(processor, SHARP)).abs().max() <= 1.5 / 255 / min(CLIP_STD)


def test_agrees_to_rounding_where_nothing_is_resized() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 45}, crop_size={"height": 45, "width": 45})
    torch.testing.assert_close(
        Preprocess.from_processor(processor)(SHARP), reference(processor, SHARP), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("size", [32, 64, 224])
def test_normalises_once(size: int) -> None:
    grey = torch.full((2, 3, size, size), 0.5)
    expected = (0.5 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    result = Preprocess.clip(32)(grey)
    assert result.shape == (2, 3, 32, 32)
    torch.testing.assert_close(result, expected[None, :, None, None].expand_as(result), rtol=0, atol=1e-5)


def test_a_processor_that_does_not_normalise_is_followed() -> None:
    processor = CLIPImageProcessorPil(do_normalize=False, do_resize=False, do_center_crop=False)
    assert torch.equal(Preprocess.from_processor(processor)(SHARP), SHARP)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_black_and_white_keep_their_gradient(level: float) -> None:
    picture = torch.full((1, 3, 61, 45), level, requires_grad=True)
    (gradient,) = torch.autograd.grad(Preprocess.clip(32)(picture).sum(), picture)
    assert (gradient[..., 10:50, 2:-2] > 0).all()


def test_what_is_not_supported_is_refused() -> None:
    with pytest.raises(ValueError, match="resample must be 2"):
        Preprocess.from_processor(CLIPImageProcessorPil(resample=0))
    with pytest.raises(ValueError, match="shortest_edge or height and width"):
        Preprocess.from_processor(CLIPImageProcessorPil(size={"shortest_edge": 3, "longest_edge": 9}))
    with pytest.raises(ValueError, match="smaller than the crop"):
        Preprocess(crop=(64, 64))(SHARP)
