"""The layers of a UNet with low-rank adapters on them, by peft: which there are, and which adapters act."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

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
        name: tuple(layer.weight.shape)
        for name, module in base_modules(unet).items()
        if isinstance(layer := module.base_layer if isinstance(module, LoraLayer) else module, _ADAPTABLE)
    }


def base_modules(unet: Any) -> dict[str, nn.Module]:
    """Return what the UNet consists of by name, without what adapters brought."""
    return {
        name: module
        for name, module in unet.named_modules()
        if name and ".lora_" not in name and not name.endswith(".base_layer")
    }
