"""Pipelines and judges without weights, whose operations give tensors without values: what they would take.

Layers are made from configurations; every operation finds out shapes and types, and nothing is computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from trainers.config import LoraConfig
from trainers.memory.judges import Judge
from trainers.models.families.base import SIZES, Conditions
from trainers.models.families.registry import family_with
from trainers.models.families.stable_diffusion_3 import T5_TOKENS
from trainers.models.pipeline import Parts, decoder_type
from trainers.models.trained_lora import Adapter
from trainers.pipelines.families import Family

Configs = Mapping[str, Mapping[str, Any]]
"""Of a pipeline's components, by name."""

_HERE = torch.device("cpu")
_MEAN_WORDS = 77
"""Tokens of a prompt where a configuration does not say."""


@dataclass(frozen=True, kw_only=True)
class SketchedParts(Parts):
    """Parts whose text encoder is left out: it does not compute beside the others."""

    text: tuple[int, int]
    """Tokens and width of a prompt's embedding."""
    pooled: int | None
    """Width of the vector for the whole of it, where there is one."""
    sized: bool
    """Whether the network is told sizes."""

    def encode(self, prompt: str, *, guided: bool) -> Conditions:
        """Return conditions of the right shape."""
        del prompt
        count = 2 if guided else 1
        return Conditions(
            sequence=torch.zeros(count, *self.text, dtype=self.dtype),
            pooled=None if self.pooled is None else torch.zeros(count, self.pooled, dtype=self.dtype),
            sizes=torch.zeros(count, SIZES, dtype=self.dtype) if self.sized else None,
        )


class Sketch:
    """One pipeline with a fresh adapter, and the judges of its images."""

    def __init__(
        self,
        form: Family,
        configs: Configs,
        lora: LoraConfig,
        dtype: torch.dtype,
        judges: Sequence[Judge],
    ) -> None:
        """Make the layers.

        Raises:
            ValueError: a target of the adapter ends the name of no layer.
        """
        self.mode = FakeTensorMode()
        kind: Any = getattr(diffusers, form.network_class)
        network = self._made(lambda: kind.from_config(dict(configs[form.network])), dtype)
        vae = self._made(
            lambda: AutoencoderKL.from_config(dict(configs["vae"])), decoder_type(form, configs["vae"], dtype)
        )
        with torch.device("meta"):
            self.adapter = Adapter(network, lora)
        self._fake(network)
        self._fake(vae)
        encoder, config = configs.get("text_encoder", {}), network.config
        width = (
            config.get("joint_attention_dim")
            or config.get("encoder_hid_dim")
            or config.get("cross_attention_dim")
        )
        tokens = int(encoder.get("max_position_embeddings", _MEAN_WORDS))
        tokens += T5_TOKENS if "text_encoder_3" in configs else 0
        self.parts = SketchedParts(
            family=family_with(form),
            pipeline=SimpleNamespace(scheduler=SimpleNamespace(config=dict(configs["scheduler"]))),
            network=network,
            vae=vae,
            device=_HERE,
            dtype=dtype,
            text=(tokens, int(width)),
            pooled=config.get("pooled_projection_dim") or _pooled(config),
            sized=_pooled(config) is not None,
        )
        self._judges = [(judge, self._tower(judge)) for judge in judges]

    @property
    def weights(self) -> list[Tensor]:
        """All weights that lie beside each other while the trial computes, the adapter's among them."""
        modules = [self.parts.network, self.parts.vae, *(tower for _, tower in self._judges)]
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
        tower: nn.Module = self._made(
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

    @staticmethod
    def _made(make: Callable[[], Any], dtype: torch.dtype) -> Any:
        """Return a frozen module of a precision, on no device."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device("meta"):
                return make().requires_grad_(requires_grad=False).eval()
        finally:
            torch.set_default_dtype(before)

    def _fake(self, module: nn.Module) -> None:
        """Give parameters and buffers a device, on which operations choose their kernels."""
        for layer in module.modules():
            for name, parameter in layer._parameters.items():  # noqa: SLF001 - a parameter's tensor cannot be swapped
                if parameter is not None:
                    fake = FakeTensor(self.mode, parameter.data, _HERE)
                    layer._parameters[name] = nn.Parameter(fake, parameter.requires_grad)  # noqa: SLF001
            for name, buffer in layer._buffers.items():  # noqa: SLF001
                if buffer is not None:
                    layer._buffers[name] = FakeTensor(self.mode, buffer, _HERE)  # noqa: SLF001


def _pooled(config: Mapping[str, Any]) -> int | None:
    """Return the width of the pooled text of a UNet that is told sizes beside it; None of any other."""
    if config.get("addition_embed_type") != "text_time":
        return None
    return int(config["projection_class_embeddings_input_dim"]) - SIZES * int(
        config["addition_time_embed_dim"]
    )


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
