"""What a frozen network keeps for its backward pass: less than autograd would, of the same numbers to the last bit."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from trainers.models.layers.remade import Kept, remaking
from trainers.models.shifted import Shifted


@dataclass
class Network:
    parameters: list[nn.Parameter]
    call: Callable[[Tensor], Tensor]


def block(*, trained: bool = False) -> Network:
    torch.manual_seed(0)
    resnet = ResnetBlock2D(in_channels=16, out_channels=32, temb_channels=8, groups=4)
    attention = BasicTransformerBlock(32, 4, 8, activation_fn="geglu")
    network: Any = nn.ModuleList([resnet, attention]).requires_grad_(requires_grad=trained)
    network.to(memory_format=torch.channels_last)
    level = torch.randn(3, 8)

    def call(value: Tensor) -> Tensor:
        found = resnet(value.to(memory_format=torch.channels_last), level)
        made: Tensor = attention(found.flatten(2).transpose(1, 2))
        return made

    return Network(list(network.parameters()), call)


def run(network: Network, within: AbstractContextManager[object]) -> tuple[list[Tensor], int]:
    """Return output and gradients, and the bytes that are kept besides parameters."""
    parameters = network.parameters
    value = torch.randn(3, 16, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), within:
        found = network.call(value)
    asked = [value, *(parameter for parameter in parameters if parameter.requires_grad)]
    gradients = torch.autograd.grad(found.square().sum(), asked)
    return [found, *gradients], sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("trained", [False, True])
def test_outputs_and_gradients_are_the_same_to_the_last_bit(trained: bool) -> None:
    network = block(trained=trained)
    (plain, before), (remade, after) = (run(network, within) for within in (nullcontext(), remaking()))
    assert all(torch.equal(one, other) for one, other in zip(plain, remade, strict=True))
    assert len(plain) == (1 + 1 + len(network.parameters) if trained else 2)
    # Frozen, the block keeps inputs of norms, queries, keys, values, and what the gated unit multiplies.
    assert after < (before if trained else 0.7 * before)


def test_a_kept_value_is_what_it_is_made_from() -> None:
    value = torch.randn(4, 8).requires_grad_()
    with remaking():
        normed = nn.functional.layer_norm(value, (8,))
    kept = Kept(normed)
    (saved,) = kept.leave()
    assert saved is value
    assert kept.leave() == ()
    assert torch.equal(kept.value(value.detach()), normed)
    plain = Kept(value)
    assert plain.leave()[0] is value
    assert plain.value(value) is value


def test_pairs_are_left_to_their_own_rules() -> None:
    torch.manual_seed(0)
    base, shift = torch.randn(2, 4, 6, 6), 0.1 * torch.randn(2, 4, 6, 6)
    weight = torch.randn(4, 4, 3, 3)

    def call(value: Any) -> Any:
        return nn.functional.silu(
            nn.functional.group_norm(torch.conv2d(value, weight, None, (1, 1), (1, 1), (1, 1), 1), 2)
        )

    expected = call(Shifted(base, shift))
    with remaking():
        found = call(Shifted(base.requires_grad_(), shift))
    assert torch.equal(found.base, expected.base)
    assert torch.equal(found.shift, expected.shift)


def test_what_is_changed_after_it_was_kept_is_an_error() -> None:
    value = torch.randn(2, 4, 6, 6).requires_grad_()
    with remaking():
        inner = value * 1.0
        found = nn.functional.silu(nn.functional.group_norm(inner, 2))
    with torch.no_grad():
        inner.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(found.sum(), value)
