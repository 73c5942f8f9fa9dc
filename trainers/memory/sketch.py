"""Pipelines and judges without weights, whose operations give tensors without values: what they would take.

Layers are made from configurations; every operation finds out shapes and types, and nothing is computed.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from trainers.config import LoraConfig, ModelConfig
from trainers.memory.judges import Judge
from trainers.models.families.base import Conditions, NetworkFamily
from trainers.models.families.registry import family_with
from trainers.models.layers.quantised import spared
from trainers.models.layers.trained_lora import Adapter
from trainers.models.pipeline import Parts, decoder_type
from trainers.models.texts import Texts
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import Family

_HERE = torch.device("cpu")


class SketchedTexts(Texts):
    """A text side that is left out: it does not compute beside the others."""

    def __init__(self, family: NetworkFamily, configs: Configs, dtype: torch.dtype) -> None:
        """Take what tells the shapes of conditions, and their precision."""
        self._family, self._configs, self._dtype = family, configs, dtype

    def encode(self, batch: tuple[str, ...], asked: Asked) -> Conditions:
        """Return conditions of the right shape."""
        shapes = self._family.told(self._configs, asked)
        return Conditions(
            **{name: torch.zeros(len(batch), *shape, dtype=self._dtype) for name, shape in shapes.items()}
        )

    def away(self, asked: Asked) -> Conditions:
        """Return conditions of the right shape."""
        return self.encode(("",), asked)

    def let_go(self) -> None:
        """There is nothing."""


class Sketch:
    """One pipeline with a fresh adapter, and the judges of its images."""

    def __init__(
        self,
        form: Family,
        configs: Configs,
        model: ModelConfig,
        dtype: torch.dtype,
        judges: Sequence[Judge],
        *,
        offload: bool = False,
    ) -> None:
        """Make the layers; those of an autoencoder that lies elsewhere are no weights of the device.

        Raises:
            ValueError: a target of the adapter ends the name of no layer.
        """
        self.mode = FakeTensorMode()
        kind: Any = getattr(diffusers, form.network_class)
        network = frozen(lambda: kind.from_config(dict(configs[form.network])), dtype)
        decoder: Any = getattr(diffusers, form.autoencoder)
        vae = frozen(
            lambda: decoder.from_config(dict(configs["vae"])), decoder_type(form, configs["vae"], dtype)
        )
        self.spared = 0 if model.quantise is None else spared(network)
        """Bytes that the network's weights take less than here, where they are not packed."""
        with torch.device("meta"):
            self.adapter = Adapter(network, model.lora or LoraConfig())
        self._fake(network)
        self._fake(vae)
        self.parts = Parts(
            family=family_with(form),
            texts=SketchedTexts(family_with(form), configs, dtype),
            pipeline=SimpleNamespace(scheduler=SimpleNamespace(config=dict(configs["scheduler"]))),
            network=network,
            vae=vae,
            device=_HERE,
            dtype=dtype,
            model=model,
            configs=configs,
            offload=offload,
        )
        self._judges = [(judge, self._tower(judge)) for judge in judges]

    @property
    def weights(self) -> list[Tensor]:
        """All weights that lie beside each other while the trial computes, the adapter's among them."""
        modules = [self.parts.network, *(tower for _, tower in self._judges)]
        modules += [] if self.parts.offload else [self.parts.vae]
        return [p.data for module in modules for p in module.parameters()]

    @property
    def unsketched(self) -> int:
        """Bytes of the judges' weights that no image passes."""
        return sum(judge.rest_bytes for judge, _ in self._judges)

    def rewards(self) -> dict[str, Callable[..., Tensor]]:
        """Return what stands for the rewards: the towers that see the images, and a mean over pixels."""
        found: dict[str, Callable[..., Tensor]] = {"pixels": lambda images, _: images.mean(dim=(1, 2, 3))}
        for number, (judge, tower) in enumerate(self._judges):
            found[f"judge {number}"] = _Seen(judge, tower)
        return found

    def _tower(self, judge: Judge) -> nn.Module:
        tower: nn.Module = frozen(
            lambda: CLIPVisionModel(
                CLIPVisionConfig(
                    hidden_size=judge.width,
                    intermediate_size=judge.inner,
                    num_hidden_layers=judge.layers,
                    num_attention_heads=judge.heads,
                    patch_size=judge.patch,
                    image_size=judge.size,
                    attn_implementation="sdpa",
                )
            ),
            getattr(torch, judge.dtype),
        )
        self._fake(tower)
        return tower

    def _fake(self, module: nn.Module) -> None:
        """Give parameters, buffers and what else layers hold a device, on which operations choose their kernels."""
        for layer in module.modules():
            for name, parameter in layer._parameters.items():  # noqa: SLF001 - a parameter's tensor cannot be swapped
                if parameter is not None:
                    fake = FakeTensor(self.mode, parameter.data, _HERE)
                    layer._parameters[name] = nn.Parameter(fake, parameter.requires_grad)  # noqa: SLF001
            for name, buffer in layer._buffers.items():  # noqa: SLF001
                if buffer is not None:
                    layer._buffers[name] = FakeTensor(self.mode, buffer, _HERE)  # noqa: SLF001
            for name, held in vars(layer).items():
                if isinstance(held, Tensor):
                    vars(layer)[name] = FakeTensor(self.mode, held, _HERE)


def frozen(make: Callable[[], Any], dtype: torch.dtype, device: str = "meta") -> Any:
    """Return a frozen module of a precision as its class begins it, by default on no device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return make().requires_grad_(requires_grad=False).eval()
    finally:
        torch.set_default_dtype(before)


class _Seen:
    """A reward that resizes images and looks at them with a tower."""

    def __init__(self, judge: Judge, tower: nn.Module) -> None:
        self._judge, self._tower = judge, tower

    def __call__(self, images: Tensor, prompts: Any = None) -> Tensor:
        del prompts
        size = (self._judge.size, self._judge.size)
        seen = nn.functional.interpolate(images, size=size, mode="bicubic", antialias=True)
        pooled: Tensor = self._tower(seen.to(getattr(torch, self._judge.dtype))).pooler_output
        return pooled.float().mean(dim=1)
