"""The layers of a UNet with low-rank adapters on them, by peft: which there are, and which adapters act."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainers.adapters.layers import fitted
from trainers.adapters.reading import AdapterLayer

_ADAPTABLE = (nn.Linear, nn.Conv2d)


@contextmanager
def beside_others() -> Iterator[None]:
    """Leave out peft's warning that there are several adapters: there are meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        yield


def adapted_layers(unet: Any) -> list[LoraLayer]:
    """Return the layers that have adapters."""
    return [module for module in unet.modules() if isinstance(module, LoraLayer)]


def matrices_of(unet: Any, name: str) -> dict[str, nn.Parameter]:
    """Return the matrices of one adapter by their names in the UNet."""
    return {key: p for key, p in unet.named_parameters() if ".lora_" in key and f".{name}." in key}


def activate(layers: Sequence[LoraLayer], names: list[str]) -> None:
    """Let these adapters act.

    Not by ``set_adapter`` and ``disable_adapters``: those also flip ``requires_grad`` of every matrix, twice per step.
    """
    for layer in layers:
        layer._disable_adapters = not names  # noqa: SLF001 - see above
        if names:
            layer._active_adapter = names  # noqa: SLF001 - see above


def weight_shapes(unet: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that can be adapted, whether they are or not, by the name of their layer."""
    return {
        name: _shape(layer)
        for name, module in base_modules(unet).items()
        if isinstance(layer := module.base_layer if isinstance(module, LoraLayer) else module, _ADAPTABLE)
    }


def _shape(layer: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """Return the shape of a layer's weight, which of a linear one may be packed."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return tuple(layer.weight.shape)


def base_modules(unet: Any) -> dict[str, nn.Module]:
    """Return what the UNet consists of by name, without what adapters brought."""
    return {
        name: module
        for name, module in unet.named_modules()
        if name and ".lora_" not in name and not name.endswith(".base_layer")
    }


def put_on(
    unet: Any,
    read: Sequence[AdapterLayer],
    tensors: Mapping[str, Tensor],
    name: str,
    *,
    dtype: torch.dtype | None = None,
) -> peft.LoraConfig:
    """Add a plain LoRA as it was given, of any ranks, frozen; returns peft's settings for it.

    Args:
        unet: That it is for.
        read: What the adapter is.
        tensors: Its matrices by name.
        name: For peft, which takes it out of the names of matrices by search: no layer's may contain it.
        dtype: Of the matrices; by default the UNet's.

    Raises:
        ValueError: it does not fit this UNet; says why.
    """
    updates = fitted(read, weight_shapes(unet))
    config = _config_of(updates)
    with beside_others():
        unet.add_adapter(config, name)
    for layer, update in updates.items():
        module = unet.get_submodule(layer)
        for matrices, key in ((module.lora_A, update.down), (module.lora_B, update.up)):
            parameter = matrices[name].weight
            matrix = tensors[key].view_as(parameter)
            parameter.data = matrix.to(parameter.device, dtype or parameter.dtype)
            parameter.requires_grad = False
    return config


def _config_of(updates: Mapping[str, AdapterLayer]) -> peft.LoraConfig:
    """Return peft's settings for these layers and no others, each of its own rank and strength."""
    rank, alpha = Counter((update.rank, update.alpha) for update in updates.values()).most_common(1)[0][0]
    exactly = {f"^{re.escape(layer)}": update for layer, update in updates.items()}
    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type] # a ratio, as good as a float
        target_modules="|".join(re.escape(layer) for layer in updates),
        rank_pattern={key: update.rank for key, update in exactly.items() if update.rank != rank},
        alpha_pattern={key: update.alpha for key, update in exactly.items() if update.alpha != alpha},
    )
