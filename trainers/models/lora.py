"""Low-rank adapters on a UNet by peft, and their files in the diffusers format."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from trainers.config import LoraConfig

WEIGHTS = "pytorch_lora_weights.safetensors"
CONFIG = "adapter_config.json"


class Adapter:
    """The adapter of one UNet: trainable, and switched off for the reference."""

    def __init__(self, unet: Any, config: LoraConfig) -> None:
        """Add it to the UNet; its update is zero at first.

        Raises:
            ValueError: no layer has a name that ends in one of the targets.
        """
        self._unet = unet
        self._config = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha or config.rank,  # type: ignore[arg-type] # a ratio, as good as a float
            target_modules=list(config.targets),
            init_lora_weights="gaussian",
        )
        try:
            unet.add_adapter(self._config)
        except ValueError as error:
            raise ValueError(
                f"model.lora.targets: none of {', '.join(config.targets)} ends the name of a layer of the UNet; "
                "attention projections are to_q, to_k, to_v, to_out.0"
            ) from error
        self._layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the adapter's matrices by name, float32."""
        return {name: p for name, p in self._unet.named_parameters() if ".lora_" in name}

    def switch(self, *, on: bool) -> None:
        """Switch the adapter on or off for the calls that follow.

        Not by ``disable_adapters``: that also flips ``requires_grad`` of every matrix, twice per sampling step.
        """
        for layer in self._layers:
            layer._disable_adapters = not on  # noqa: SLF001 - see above

    def files(self) -> dict[str, bytes]:
        """Return the files that ``pipeline.load_lora_weights(DIRECTORY)`` reads."""
        layers = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in peft.get_peft_model_state_dict(self._unet).items()
        }
        config = {key: _plain(value) for key, value in self._config.to_dict().items()}  # type: ignore[no-untyped-call] # peft's
        with tempfile.TemporaryDirectory() as folder:
            StableDiffusionPipeline.save_lora_weights(
                folder, unet_lora_layers=layers, unet_lora_adapter_metadata=config
            )
            weights = (Path(folder) / WEIGHTS).read_bytes()
        return {
            WEIGHTS: _ordered(weights),
            CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        }

    def load(self, files: Mapping[str, bytes]) -> None:
        """Take the matrices of ``files()``.

        Raises:
            ValueError: they do not fit this UNet and this rank.
        """
        if WEIGHTS not in files:
            raise ValueError(f"an adapter needs {WEIGHTS}, got {', '.join(sorted(files)) or 'nothing'}")
        tensors = {
            name.removeprefix("unet."): tensor
            for name, tensor in safetensors.torch.load(files[WEIGHTS]).items()
        }
        expected = peft.get_peft_model_state_dict(self._unet)
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in expected.items()}:
            raise ValueError("the adapter does not fit this UNet, or has another rank or other targets")
        peft.set_peft_model_state_dict(self._unet, tensors)


def _ordered(weights: bytes) -> bytes:
    """Return a safetensors file with its header in order: equal adapters are equal files."""
    size = int.from_bytes(weights[:8], "little")
    header = json.dumps(json.loads(weights[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format's alignment
    return len(header).to_bytes(8, "little") + header + weights[8 + size :]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
