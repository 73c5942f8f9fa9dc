"""A network of pairs (``shifted``) for torch.compile, which knows operations on tensors alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Network = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Latents, timestep and text to the reference's output and the policy's shift."""


class CompiledPairs:
    """Traces a network for every shape of its inputs, and compiles what it did, with the parameters it has."""

    def __init__(self, network: Network) -> None:
        """Take a network that does the same operations whatever the values of its inputs and parameters."""
        self._network = network
        self._compiled: dict[Any, Network] = {}

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network returns."""
        inputs = latents, timestep, text
        key = tuple((value.shape, value.stride(), value.dtype) for value in inputs)
        if key not in self._compiled:
            self._compiled[key] = torch.compile(make_fx(self._network)(*inputs))
        return self._compiled[key](*inputs)
