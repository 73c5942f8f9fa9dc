"""Low-rank adapters on a UNet by peft, and their files in the diffusers format: one to train, several to compose."""

import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from torch import nn

from trainers.adapters.files import CONFIG, WEIGHTS, weights_file
from trainers.adapters.layers import fitted, target_problems
from trainers.adapters.reading import AdapterLayer, read_adapter, read_files
from trainers.adapters.writing import folded, ordered
from trainers.config import LoraConfig
from trainers.models.shifted import Shifted

_ADAPTABLE = (nn.Linear, nn.Conv2d)


class Adapter:
    """The adapter of one UNet: trainable, and switched off for the reference."""

    def __init__(self, unet: Any, config: LoraConfig, name: str = "default") -> None:
        """Add it to the UNet, beside what is there under other names; its update is zero at first.

        Raises:
            ValueError: a target ends the name of no layer; says which.
        """
        self._unet, self._name = unet, name
        self._config = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha or config.rank,  # type: ignore[arg-type] # a ratio, as good as a float
            target_modules=list(config.targets),
            init_lora_weights="gaussian",
        )
        for _, problem in target_problems(config.targets, _weights(unet), _modules(unet)):
            raise ValueError(f"model.lora.targets: {problem}")
        with _beside_others():
            unet.add_adapter(self._config, name)
        self._layers = _layers(unet)
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()
        self._as_shift = False
        for layer in self._layers:
            if name in layer.lora_A:
                # Left to autocast: layers that are asked the same then share what they are asked.
                layer.cast_input_dtype_enabled = False
                layer.lora_A[name].register_forward_pre_hook(self._asked)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the adapter's matrices by name, float32."""
        return _matrices(self._unet, self._name)

    def switch(self, *, on: bool) -> None:
        """Switch the adapter on, and others off, or all off, for the calls that follow."""
        self._as_shift = False
        _activate(self._layers, [self._name] if on else [])

    def switch_as_shift(self) -> None:
        """Switch the adapter on for the policy alone: the network gives the reference's values and the shifts."""
        self.switch(on=True)
        self._as_shift = True

    def _asked(self, layer: nn.Module, inputs: tuple[Any]) -> tuple[Shifted] | None:  # noqa: ARG002 - torch's
        """Begin the update of a layer's values: a shift, of what the policy has there."""
        if not self._as_shift:
            return None
        value = inputs[0]
        return (Shifted(None, value.moved if isinstance(value, Shifted) else value),)

    def files(self) -> dict[str, bytes]:
        """Return the files that ``pipeline.load_lora_weights(DIRECTORY)`` reads, the strength in the matrices."""
        layers = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in peft.get_peft_model_state_dict(self._unet, adapter_name=self._name).items()
        }
        config = {key: _plain(value) for key, value in self._config.to_dict().items()}  # type: ignore[no-untyped-call] # peft's
        with tempfile.TemporaryDirectory() as folder:
            StableDiffusionPipeline.save_lora_weights(
                folder, unet_lora_layers=layers, unet_lora_adapter_metadata=config
            )
            weights = (Path(folder) / WEIGHTS).read_bytes()
        written = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        return folded({WEIGHTS: ordered(weights), CONFIG: written})

    def load(self, files: Mapping[str, bytes]) -> None:
        """Take the matrices of ``files()``, or of any adapter of this rank; what it adds is the same to rounding.

        Raises:
            ValueError: they do not fit this UNet and this rank.
        """
        strength = self._config.lora_alpha / self._config.r
        updates, given = read_files(files), {}
        tensors = safetensors.torch.load(files[WEIGHTS])
        for update in updates:
            given[f"{update.layer}.lora_A.weight"] = tensors[update.down]
            up = tensors[update.up].double() * (update.strength / strength)
            given[f"{update.layer}.lora_B.weight"] = up.float()
        expected = peft.get_peft_model_state_dict(self._unet, adapter_name=self._name)
        if {n: t.shape for n, t in given.items()} != {n: t.shape for n, t in expected.items()}:
            raise ValueError("the adapter does not fit this UNet, or has another rank or other targets")
        peft.set_peft_model_state_dict(self._unet, given, adapter_name=self._name)


class FrozenAdapters:
    """Several adapters on one UNet, of which one acts, a weighted sum, or none."""

    def __init__(self, unet: Any) -> None:
        """Begin with none."""
        self._unet = unet
        self._layers: list[LoraLayer] = []

    def add(self, name: str, directory: Path) -> None:
        """Add a plain LoRA of any ranks and any names of tensors, in the precision of the UNet.

        Raises:
            ValueError: there is no adapter, or it does not fit this UNet; says why.
        """
        try:
            read = read_adapter(directory)
            tensors = safetensors.torch.load_file(weights_file(directory))
        except (ValueError, OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{directory} cannot be read as an adapter: {error}") from error
        try:
            updates = fitted(read, _weights(self._unet))
        except ValueError as error:
            raise ValueError(f"{directory} does not fit the base: {error}") from error
        known = _known_as(name)
        with _beside_others():
            self._unet.add_adapter(_config_of(updates), known)
        for layer, update in updates.items():
            module = self._unet.get_submodule(layer)
            for matrices, key in ((module.lora_A, update.down), (module.lora_B, update.up)):
                parameter = matrices[known].weight
                parameter.data.copy_(tensors[key].view_as(parameter))
                parameter.requires_grad = False
        self._layers = _layers(self._unet)

    def trainable(self, config: LoraConfig, name: str) -> Adapter:
        """Return a fresh adapter beside these, trained while they stay frozen.

        Raises:
            ValueError: a target ends the name of no layer; says which.
        """
        try:
            adapter = Adapter(self._unet, config, name)
        except ValueError as error:
            raise ValueError(str(error).replace("model.lora", "distillation.lora", 1)) from error
        self._layers = _layers(self._unet)
        return adapter

    def use(self, weights: Mapping[str, float]) -> None:
        """Add ``Σ w_i ΔW_i`` to the UNet's weights in the calls that follow: nothing where there are no weights."""
        for layer in self._layers:
            for name, weight in weights.items():
                layer.set_scale(_known_as(name), weight)
        _activate(self._layers, [_known_as(name) for name in weights])


def _known_as(name: str) -> str:
    """Return the name for peft, which takes it out of the names of matrices by search: no layer's may contain it."""
    return f"model-{name}"


@contextmanager
def _beside_others() -> Iterator[None]:
    """Leave out peft's warning that there are several adapters: there are meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        yield


def _layers(unet: Any) -> list[LoraLayer]:
    return [module for module in unet.modules() if isinstance(module, LoraLayer)]


def _matrices(unet: Any, name: str) -> dict[str, nn.Parameter]:
    """Return the matrices of one adapter by their names in the UNet."""
    return {key: p for key, p in unet.named_parameters() if ".lora_" in key and f".{name}." in key}


def _activate(layers: Sequence[LoraLayer], names: list[str]) -> None:
    """Let these adapters act.

    Not by ``set_adapter`` and ``disable_adapters``: those also flip ``requires_grad`` of every matrix, twice per step.
    """
    for layer in layers:
        layer._disable_adapters = not names  # noqa: SLF001 - see above
        if names:
            layer._active_adapter = names  # noqa: SLF001 - see above


def _weights(unet: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that can be adapted, whether they are or not, by the name of their layer."""
    return {
        name: tuple(layer.weight.shape)
        for name, module in _modules(unet).items()
        if isinstance(layer := module.base_layer if isinstance(module, LoraLayer) else module, _ADAPTABLE)
    }


def _modules(unet: Any) -> dict[str, nn.Module]:
    """Return what the UNet consists of by name, without what adapters brought."""
    return {
        name: module
        for name, module in unet.named_modules()
        if name and ".lora_" not in name and not name.endswith(".base_layer")
    }


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


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
