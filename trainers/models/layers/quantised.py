"""Linear layers whose frozen weights lie in 4 bits, 64 of them to a scale: NF4, by bitsandbytes.

Weights are quantised one layer after the other as they come to the device, so it never holds the network whole, and one
layer's are unpacked while it multiplies. Convolutions, norms and biases stay as they are, and so do layers in whose
rows a scale would end midway: bitsandbytes 0.50 unpacks those wrongly on CPUs. Not by its own layer either: on CPUs
with bfloat16 that repacks weights where no gradient is asked for, into a form without one.
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from trainers.models.shifted import Shifted, affine

_BLOCK = 64
"""Weights of a scale, which is in float32."""


def quantise(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Put packed layers in place of a network's linear ones, as far as their rows are whole blocks.

    Args:
        network: Frozen.
        device: Where packed weights lie.
        dtype: In which they are multiplied.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ValueError(
            "model.quantise: nf4 needs the package bitsandbytes, which is not installed: "
            "pip install 'cdsweep[quantise]'"
        ) from error
    for name, layer in _linear_layers(network).items():
        network.set_submodule(name, Quantised(layer, device, dtype))


def spared(network: nn.Module) -> int:
    """Return the bytes by which a network's weights would be less packed, the largest layer's unpacked beside them."""
    whole = [layer.weight for layer in _linear_layers(network).values()]
    packed = sum(weight.numel() // 2 + 4 * weight.numel() // _BLOCK for weight in whole)
    sizes = [weight.nbytes for weight in whole]
    return sum(sizes) - packed - max(sizes, default=0)


class Quantised(nn.Linear):
    """A linear layer with its weight in 4 bits; takes pairs too."""

    def __init__(self, layer: nn.Linear, device: torch.device, dtype: torch.dtype) -> None:
        """Quantise a layer's weight, rounded to ``dtype``, and take its bias over."""
        nn.Module.__init__(self)  # no weights of its own
        self.in_features, self.out_features = layer.in_features, layer.out_features
        bitsandbytes: Any = importlib.import_module("bitsandbytes")
        whole = bitsandbytes.nn.Params4bit(
            layer.weight.data.to(dtype),
            requires_grad=False,
            blocksize=_BLOCK,
            compress_statistics=False,
            quant_type="nf4",
        )
        self.weight = whole.to(device)
        self.bias = layer.bias

    def forward(self, value: Tensor) -> Tensor:
        """Return ``W x + b``, in the type of the weights as under autocast; of a pair the pair."""
        found: Tensor = _multiplied(value, self.weight, self.bias)
        return found


def _multiplied(value: Any, weight: Any, bias: Tensor | None) -> Any:
    if isinstance(value, Shifted):
        return affine(_multiplied, (value, weight, bias), {})
    bitsandbytes: Any = importlib.import_module("bitsandbytes")
    state = weight.quant_state
    return bitsandbytes.matmul_4bit(value.to(state.dtype), weight, quant_state=state, bias=bias)


def _linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers whose rows are whole blocks, by name; of further kinds, whose weights others read, none."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if type(layer) is nn.Linear and layer.in_features % _BLOCK == 0
    }
