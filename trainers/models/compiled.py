"""A network of pairs (``shifted``) for torch.compile, which knows operations on tensors alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from trainers.models.families.base import Conditions

Network = Callable[[Tensor, Tensor, Conditions], tuple[Tensor, Tensor]]
"""Latents, level and conditions to the reference's output and the policy's shift."""


class CompiledPairs:
    """Traces a network for every shape of its inputs, and compiles what it did, with the parameters it has."""

    def __init__(self, network: Network) -> None:
        """Take a network that does the same operations whatever the values of its inputs and parameters."""
        self._network = network
        self._compiled: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {}

    def __call__(self, latents: Tensor, level: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Return what the network returns."""
        named = conditions.named()
        inputs = latents, level, *named.values()
        key = tuple((value.shape, value.stride(), value.dtype) for value in inputs)
        if key not in self._compiled:

            def on_tensors(latents: Tensor, level: Tensor, *told: Tensor) -> tuple[Tensor, Tensor]:
                return self._network(latents, level, Conditions(**dict(zip(named, told, strict=True))))

            self._compiled[key] = torch.compile(make_fx(on_tensors)(*inputs))
        return self._compiled[key](*inputs)
