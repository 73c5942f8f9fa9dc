"""The low-rank adapter that is trained on a network, and its files in the diffusers format."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
from torch import Tensor, nn

from trainers.adapters.files import CONFIG, FRONTIER_LORA, WEIGHTS
from trainers.adapters.layers import named_layers, target_problems
from trainers.adapters.reading import read_files
from trainers.adapters.writing import folded, ordered
from trainers.config import LoraConfig
from trainers.models.conditional.form import PRICE, Form, build_form
from trainers.models.conditional.gated_files import folded_files, gated_file, parted
from trainers.models.families.registry import family_asking
from trainers.models.layers.adapted import (
    activate,
    adapted_layers,
    base_modules,
    beside_others,
    matrices_of,
    put_on,
    weight_shapes,
)
from trainers.models.layers.policy_rows import PolicyRows

USUAL = "default"
"""Name of an adapter for peft."""


class Adapter:
    """The adapter of one network: trainable, and switched off for the reference.

    With gates it is a function of the tilt, which whoever switches it on gives (``models.conditional``).
    """

    def __init__(
        self,
        network: Any,
        config: LoraConfig | Mapping[str, bytes],
        name: str = USUAL,
        *,
        rewards: Sequence[str] = (),
        form: str = PRICE,
    ) -> None:
        """Add it to the network, beside what is there under other names.

        Args:
            network: That it adapts.
            config: Of a fresh one, whose update is zero; or the files of one, a plain LoRA of any ranks and layers.
            name: For peft.
            rewards: That act, where it is a function of the tilt.
            form: Of its gates.

        Raises:
            ValueError: a target ends the name of no layer, the files hold no plain LoRA of this network, or the form
                does not fold; says why.
        """
        self._network, self.name = network, name
        add = _fresh if isinstance(config, LoraConfig) else _given
        self._config = add(network, config, name)  # type: ignore[arg-type] # each takes its own kind
        self._layers = adapted_layers(network)
        self._rewards = tuple(rewards)
        self._form: Form | None = None
        self._tilts: Tensor | None = None
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()
        own = {module: layer for layer, module in network.named_modules()}
        self._gated = [layer for layer in self._layers if name in layer.lora_A]
        self._names = [own[layer] for layer in self._gated]
        if rewards:
            device = next(iter(self.parameters().values())).device
            self._form = build_form(form, len(self._gated), self._config.r, len(rewards))
            for parameter in self._form.parameters().values():
                parameter.data = parameter.data.to(device)
        self.rows = PolicyRows.of(network)
        """Which adapters of the network act beside the reference."""
        self.rows.take(self._layers)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the adapter's matrices, float32, by names that do not depend on the adapter's."""
        own = matrices_of(self._network, self.name)
        named = {key.replace(f".{self.name}.", f".{USUAL}."): matrix for key, matrix in own.items()}
        return named if self._form is None else named | dict(self._form.parameters())

    @property
    def form(self) -> Form | None:
        """The gates; None where the adapter is for one optimum."""
        return self._form

    def switch(self, *, on: bool) -> None:
        """Switch the adapter on, and others off, or all off, for the calls that follow."""
        assert not (on and self._form), "an adapter with gates acts beside its reference, at tilts"
        self.rows.act(())
        activate(self._layers, [self.name] if on else [])

    def switch_beside_reference(self, *, paired: bool, tilts: Tensor | None = None) -> None:
        """Switch the adapter on for the policy alone, as rows of its own or as pairs (``policy_rows``).

        Args:
            paired: As pairs.
            tilts: ``[batch, R]``, nats per σ, of an adapter with gates.
        """
        self._tilts = tilts
        act_beside_reference([self], paired=paired)

    def gates(self) -> dict[Any, Tensor] | None:
        """Return the gates ``[batch, rank]`` of the layers at the tilts that it was switched on with.

        ``[1, rank]`` where these are one, expanded: told by strides, as values would have to be waited for.
        """
        if self._form is None:
            return None
        tilts = self._tilts
        assert tilts is not None, "an adapter with gates is asked for tilts"
        alike = tilts[:1] if tilts.stride(0) == 0 else tilts
        return dict(zip(self._gated, self._form(alike), strict=True))

    def files(self) -> dict[str, bytes]:
        """Return its files; without gates those that ``pipeline.load_lora_weights(DIRECTORY)`` reads."""
        plain = self._plain_files()
        return plain if self._form is None else gated_file(plain, self._form, self._names, self._rewards)

    @torch.no_grad()
    def folded(self, tilt: Tensor) -> dict[str, bytes]:
        """Return the files of the plain LoRA that an adapter with gates is at a tilt ``[R]``."""
        assert self._form is not None, "an adapter without gates is plain"
        gates = self._form(tilt[None])[:, 0]  # [L, rank]
        return folded_files(self._plain_files(), dict(zip(self._names, gates, strict=True)))

    def _plain_files(self) -> dict[str, bytes]:
        """Return the matrices in the diffusers format, the strength in them."""
        layers = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in peft.get_peft_model_state_dict(self._network, adapter_name=self.name).items()
        }
        config = {key: _plain(value) for key, value in self._config.to_dict().items()}  # type: ignore[no-untyped-call] # peft's
        with tempfile.TemporaryDirectory() as folder:
            family_asking(self._network).save_adapter(Path(folder), layers, config)
            weights = (Path(folder) / WEIGHTS).read_bytes()
        written = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        return folded({WEIGHTS: ordered(weights), CONFIG: written})

    def load(self, files: Mapping[str, bytes]) -> None:
        """Take the matrices of ``files()``, or of any adapter of this rank; what it adds is the same to rounding.

        Raises:
            ValueError: they do not fit this network and this rank.
        """
        if self._form is not None:
            if FRONTIER_LORA not in files:
                raise ValueError(f"there is no {FRONTIER_LORA}, only {', '.join(sorted(files)) or 'nothing'}")
            files = parted(files[FRONTIER_LORA], self._form, self._names, self._rewards)
        strength = self._config.lora_alpha / self._config.r
        updates, given = read_files(files), {}
        tensors = safetensors.torch.load(files[WEIGHTS])
        for update in updates:
            given[f"{update.layer}.lora_A.weight"] = tensors[update.down]
            up = tensors[update.up].double() * (update.strength / strength)
            given[f"{update.layer}.lora_B.weight"] = up.float()
        expected = peft.get_peft_model_state_dict(self._network, adapter_name=self.name)
        if {n: t.shape for n, t in given.items()} != {n: t.shape for n, t in expected.items()}:
            raise ValueError("the adapter does not fit this network, or has another rank or other targets")
        peft.set_peft_model_state_dict(self._network, given, adapter_name=self.name)


def act_beside_reference(adapters: Sequence[Adapter], *, paired: bool) -> None:
    """Let adapters of one network act beside their references, in the order of their rows."""
    gates = {adapter.name: found for adapter in adapters if (found := adapter.gates()) is not None}
    adapters[0].rows.act([adapter.name for adapter in adapters], paired=paired, gates=gates)


def _fresh(network: Any, config: LoraConfig, name: str) -> peft.LoraConfig:
    layers, modules = weight_shapes(network), base_modules(network)
    for _, problem in target_problems(config.targets, layers, modules):
        raise ValueError(f"model.lora.targets: {problem}")
    added = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or config.rank,  # type: ignore[arg-type] # a ratio, as good as a float
        target_modules=named_layers(config.targets, layers, modules),
        init_lora_weights="gaussian",
    )
    with beside_others():
        network.add_adapter(added, name)
    return added


def _given(network: Any, files: Mapping[str, bytes], name: str) -> peft.LoraConfig:
    read = read_files(files)
    try:
        tensors = safetensors.torch.load(files[WEIGHTS])
    except safetensors.SafetensorError as error:
        raise ValueError(f"{WEIGHTS} cannot be read: {error}") from error
    return put_on(network, read, tensors, name, dtype=torch.float32)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
