"""Attributes against values known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from trainers.rewards.attributes import (
    Attribute,
    Brightness,
    ColourEntropy,
    Colourfulness,
    EdgeDensity,
    GlobalContrast,
    LocalContrast,
    Saturation,
)
from trainers.testing import check_reward

ALL = [Brightness, GlobalContrast, LocalContrast, Saturation, Colourfulness]


def flat(red: float, green: float, blue: float) -> Tensor:
    return (
        torch.tensor([red, green, blue], dtype=torch.float32)[None, :, None, None]
        .expand(1, 3, 16, 16)
        .contiguous()
    )


def halves() -> Tensor:
    """Left half black, right half white."""
    picture = torch.zeros(1, 3, 16, 16)
    picture[..., 8:] = 1.0
    return picture


def value(cls: type[Attribute], picture: Tensor) -> float:
    return cls()(picture).item()


@pytest.mark.parametrize(
    ("cls", "picture", "expected"),
    [
        (Brightness, flat(0, 0, 0), 0.0),
        (Brightness, flat(1, 1, 1), 1.0),
        (Brightness, flat(0, 1, 0), 0.7152),
        (GlobalContrast, flat(0.3, 0.3, 0.3), 0.0),
        (GlobalContrast, halves(), 0.5),
        (LocalContrast, flat(0.2, 0.4, 0.9), 0.0),
        (Saturation, flat(0.6, 0.6, 0.6), 0.0),
        (Saturation, flat(1, 0, 0), 1.0),
        (Saturation, flat(1, 0.5, 0.5), 0.5),
        (Saturation, flat(0, 0, 0), 0.0),
        (Colourfulness, flat(0.6, 0.6, 0.6), 0.0),
        (Colourfulness, flat(1, 0, 0), 0.3 * math.hypot(1.0, 0.5)),
    ],
)
def test_closed_forms(cls: type[Attribute], picture: Tensor, expected: float) -> None:
    assert value(cls, picture) == pytest.approx(expected, abs=2.1e-4)


def test_colourfulness_has_the_published_form() -> None:
    picture = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)).double()
    red, green, blue = (255.0 * picture[0]).numpy()
    opponent, other = red - green, 0.5 * (red + green) - blue
    spread = math.hypot(opponent.std(), other.std())
    expected = spread + 0.3 * math.hypot(opponent.mean(), other.mean())
    assert 255.0 * value(Colourfulness, picture) == pytest.approx(expected, abs=0.05)


def test_local_contrast_of_one_bright_line() -> None:
    picture = torch.zeros(1, 3, 33, 33)
    picture[..., 16] = 1.0
    kernel = torch.exp(-0.5 * torch.arange(-2, 3).square())
    kernel /= kernel.sum()
    # The line loses 1 − k₀; its neighbours gain as much together.
    assert value(LocalContrast, picture) == pytest.approx(2.0 * (1.0 - kernel[2].item()) / 33, abs=1e-4)


def test_wider_surroundings_see_coarser_structure() -> None:
    assert LocalContrast(sigma=3.0)(halves()).item() > LocalContrast(sigma=0.5)(halves()).item()


@pytest.mark.parametrize("cls", ALL)
def test_low_is_the_negative(cls: type[Attribute], pictures: Tensor) -> None:
    assert torch.equal(cls("low")(pictures), -cls("high")(pictures))


@pytest.mark.parametrize("aim", ["high", "low"])
@pytest.mark.parametrize("cls", ALL)
def test_contract(cls: type[Attribute], aim: str, pictures: Tensor) -> None:
    check_reward(cls(aim), pictures)


@pytest.mark.parametrize(
    "picture", [flat(0, 0, 0), flat(0.5, 0.5, 0.5), flat(1, 1, 1), flat(1, 0, 0), flat(-0.1, 0, 1.2)]
)
@pytest.mark.parametrize("cls", ALL)
def test_flat_pictures_have_finite_gradients(cls: type[Attribute], picture: Tensor) -> None:
    picture = picture.clone().requires_grad_()
    score = cls()(picture)
    (gradient,) = torch.autograd.grad(score.sum(), picture)
    assert score.isfinite().all()
    assert gradient.isfinite().all()


def test_edges_and_colours_are_counted() -> None:
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 4:] = 1.0
    assert EdgeDensity()(picture).item() == pytest.approx(2 / 8), "of each row the two pixels beside the edge"
    assert ColourEntropy()(picture).item() == pytest.approx(1.0), "two colours alike: one bit"
    assert EdgeDensity()(torch.full((1, 3, 8, 8), 0.4)).item() == 0
    assert ColourEntropy("low")(torch.full((1, 3, 8, 8), 0.4)).item() == 0
    picture[..., :2] = 0.5
    assert ColourEntropy()(picture).item() == pytest.approx(1.5)


def test_bad_parameters_are_refused(pictures: Tensor) -> None:
    with pytest.raises(ValueError, match="aim must be high or low, got 'medium'"):
        Saturation("medium")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma must be > 0, got 0"):
        LocalContrast(sigma=0)
    with pytest.raises(ValueError, match="lower sigma"):
        LocalContrast(sigma=30.0)(pictures)
    with pytest.raises(ValueError, match=r"\[batch, 3, height, width\], got \(4, 48\)"):
        Brightness()(pictures[:, 0, 0])
