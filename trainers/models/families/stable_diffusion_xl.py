"""SDXL: the UNet of Stable Diffusion with two text encoders, a vector for the whole text, and sizes of the image."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from trainers.models.families.base import CPU, SIZES, Conditions
from trainers.models.families.stable_diffusion import StableDiffusion
from trainers.models.shifted import Shifted
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import STABLE_DIFFUSION_XL, Family


class StableDiffusionXL(StableDiffusion):
    """Asked as Stable Diffusion is, and told that the image is whole and of the size at which it is drawn."""

    form: ClassVar[Family] = STABLE_DIFFUSION_XL

    def load(self, source: str, **options: Any) -> Any:
        """Return the pipeline, which marks no images."""
        return StableDiffusionXLPipeline.from_pretrained(source, add_watermarker=False, **options)

    def encode(self, pipeline: Any, texts: list[str], asked: Asked) -> Conditions:
        """Return the states of both text encoders side by side, the pooled text of the second, and the sizes."""
        states, _, pooled, _ = pipeline.encode_prompt(
            texts, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        told = torch.tensor([[*asked.size, 0, 0, *asked.size]], dtype=states.dtype)
        return Conditions(sequence=states, pooled=pooled, sizes=told.expand(len(texts), -1))

    def away(self, pipeline: Any, asked: Asked) -> Conditions:
        """Return those of the negative prompt; for none what the pipeline takes, zeros if its index says so."""
        found = super().away(pipeline, asked)
        if asked.negative_prompt is not None or not pipeline.config.force_zeros_for_empty_prompt:
            return found
        nothing = found.each(torch.zeros_like)
        return replace(found, sequence=nothing.sequence, pooled=nothing.pooled)

    def told(self, configs: Configs, asked: Asked) -> dict[str, tuple[int, ...]]:
        """Return the shapes of both text encoders' states, of the pooled text and of the sizes."""
        unet = configs["unet"]
        sized = SIZES * int(unet["addition_time_embed_dim"])
        pooled = int(unet["projection_class_embeddings_input_dim"]) - sized
        return {**super().told(configs, asked), "pooled": (pooled,), "sizes": (SIZES,)}

    def ask(self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions) -> Tensor | Shifted:
        """Return what the UNet predicts."""
        output: Tensor | Shifted = network(
            latents,
            level,
            encoder_hidden_states=conditions.sequence,
            added_cond_kwargs={"text_embeds": conditions.pooled, "time_ids": conditions.sizes},
            return_dict=False,
        )[0]
        return output

    def unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents without their scale, by channel where the autoencoder has it so."""
        scale, mean, std = (vae.config.get(key) for key in ("scaling_factor", "latents_mean", "latents_std"))
        if mean is None or std is None:
            return latents / float(scale)
        by_channel = [latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std)]
        return latents * by_channel[1] / float(scale) + by_channel[0]
