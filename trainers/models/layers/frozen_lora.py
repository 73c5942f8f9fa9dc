"""Several low-rank adapters on one UNet, as they were given: plain LoRA of any ranks and names of tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

from trainers.adapters.files import weights_file
from trainers.adapters.reading import read_adapter
from trainers.config import LoraConfig
from trainers.models.conditional.form import PRICE
from trainers.models.layers.adapted import activate, adapted_layers, put_on
from trainers.models.layers.policy_rows import PolicyRows
from trainers.models.layers.trained_lora import Adapter


class FrozenAdapters:
    """Several adapters on one UNet, of which one acts, a weighted sum, or none."""

    def __init__(self, unet: Any) -> None:
        """Begin with none."""
        self._unet, self._layers = unet, adapted_layers(unet)

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
            put_on(self._unet, read, tensors, _known_as(name))
        except ValueError as error:
            raise ValueError(f"{directory} does not fit the base: {error}") from error
        self._layers = adapted_layers(self._unet)

    def trainable(
        self, config: LoraConfig, name: str, *, conditions: Sequence[str] = (), form: str = PRICE
    ) -> Adapter:
        """Return a fresh adapter beside these, trained while they stay frozen.

        Args:
            config: Its size.
            name: For peft.
            conditions: What it is a function of, by name; none: it is plain.
            form: Of that function.

        Raises:
            ValueError: a target ends the name of no layer, or the form does not fold; says which.
        """
        try:
            adapter = Adapter(self._unet, config, name, rewards=conditions, form=form)
        except ValueError as error:
            raise ValueError(str(error).replace("model.lora", "distillation.lora", 1)) from error
        self._layers = adapted_layers(self._unet)
        return adapter

    def use(self, weights: Mapping[str, float]) -> None:
        """Add ``Σ w_i ΔW_i`` to the UNet's weights in the calls that follow: nothing where there are no weights."""
        for layer in self._layers:
            for name, weight in weights.items():
                layer.set_scale(_known_as(name), weight)
        PolicyRows.of(self._unet).act(())
        activate(self._layers, [_known_as(name) for name in weights])


def _known_as(name: str) -> str:
    """Return the name for peft, which takes it out of the names of matrices by search: no layer's may contain it."""
    return f"model-{name}"
