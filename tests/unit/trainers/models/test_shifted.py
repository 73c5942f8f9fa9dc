"""A pair of passes gives what two passes give, and a difference that rounding does not reach."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from trainers.models.shifted import Shifted


def constant(like: Any, *shape: int) -> Tensor:
    """Return numbers that bfloat16 holds, in the type of a value."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return drawn.bfloat16().to(like.dtype)


def plain(like: Any) -> Tensor:
    return constant(like, 2, 4, 8, 8)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "convolution": lambda x: F.conv2d(x, constant(x, 6, 4, 3, 3), constant(x, 6), padding=1, stride=2),
    "projection": lambda x: F.linear(x, constant(x, 5, 8), constant(x, 5)),
    "projection without bias": lambda x: F.linear(x, constant(x, 5, 8)),
    "normalisation": lambda x: F.group_norm(x, 2),
    "layer normalisation": lambda x: F.layer_norm(x, (8,)),
    "activation": F.silu,
    "gate": lambda x: x.chunk(2, dim=-1)[0] * F.gelu(x.chunk(2, dim=-1)[1]),
    "attention": lambda x: F.scaled_dot_product_attention(x, 2.0 * x, x.transpose(2, 3)),
    "attention written out": lambda x: (x @ x.transpose(2, 3) / 3.0).softmax(dim=-1) @ x,
    "sum with what is the same": lambda x: (plain(x) + x) - 2.0 * plain(x) + (1.0 - 3.0 * x),
    "beside what is the same": lambda x: torch.cat([x, plain(x), x * plain(x)], dim=1),
    "broadcast": lambda x: plain(x) + x[:, :, :1, :1],
    "quotient": lambda x: (x / 3.0) / (2.0 + x**2) + 1.0 / (2.0 + x * x),
    "views": lambda x: x.permute(0, 2, 3, 1).reshape(2, 64, 4).flatten().view(4, 128).unsqueeze(0),
    "upsampling": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "not listed": lambda x: torch.logsumexp(x, dim=1) + x.amax(dim=1),
}


def pair(scale: float, dtype: torch.dtype = torch.float32) -> Shifted:
    generator = torch.Generator().manual_seed(0)
    base, shift = torch.randn(2, 2, 4, 8, 8, generator=generator)
    return Shifted(base.to(dtype), (scale * shift).to(dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_pair_of_passes_gives_what_two_passes_give(name: str) -> None:
    function, value = FUNCTIONS[name], pair(0.5)
    found = function(value)
    torch.testing.assert_close(found.base, function(value.base), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.moved, function(value.moved), rtol=1e-4, atol=1e-4)
    assert found.shape == found.base.shape == function(value.base).shape


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_shifted_stays_so_to_the_last_bit(name: str) -> None:
    found = FUNCTIONS[name](pair(0.0))
    assert torch.equal(found.shift, torch.zeros(found.shape))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_shift_is_known_to_a_share_of_itself_in_half_precision(name: str) -> None:
    """A shift of a hundredth of the last bit of the values: two passes see none of it, or a whole bit."""
    value, function = pair(2.0**-14, torch.bfloat16), FUNCTIONS[name]
    with torch.autocast("cpu", torch.bfloat16):
        found = function(value).shift.double()
    base, shift = value.base.double(), value.shift.double()
    exact = function(base + shift) - function(base)
    assert (found - exact).norm() < 0.02 * exact.norm()


def test_gradients_are_those_of_two_passes() -> None:
    value = pair(0.5)
    base, shift = value.base.requires_grad_(), value.shift.requires_grad_()
    for name, function in FUNCTIONS.items():
        found = function(Shifted(base, shift))
        once = torch.autograd.grad((found.base.square() + found.moved.sin()).sum(), (base, shift))
        expected = function(base).square() + function(base + shift).sin()
        for one, other in zip(once, torch.autograd.grad(expected.sum(), (base, shift)), strict=True):
            assert (one - other).norm() < 1e-4 * other.norm(), name


@pytest.mark.parametrize(
    "change", [lambda x: x.add_(1.0), lambda x: F.silu(x, inplace=True), lambda x: plain(x).mul_(x)]
)
def test_nothing_is_changed_in_place(change: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="in place"):
        change(pair(0.5))
