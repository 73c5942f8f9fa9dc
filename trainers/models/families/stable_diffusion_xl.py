"""SDXL: the UNet of Stable Diffusion with two text encoders, a vector for the whole text, and sizes of the image."""

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

    def encode(self, pipeline: Any, prompt: str, asked: Asked) -> Conditions:
        """Return the states of both text encoders side by side, the pooled text of the second, and the sizes.

        Conditions of "" are what the pipeline takes for no negative prompt: zeros, if its index says so.
        """
        guided = asked.free is not None
        embedding, empty, pooled, pooled_empty = pipeline.encode_prompt(
            prompt,
            device=CPU,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=asked.negative_prompt,
        )
        told = torch.tensor([[*asked.size, 0, 0, *asked.size]], dtype=embedding.dtype)
        if not guided:
            return Conditions(sequence=embedding, pooled=pooled, sizes=told)
        return Conditions(
            sequence=torch.cat([empty, embedding]),
            pooled=torch.cat([pooled_empty, pooled]),
            sizes=torch.cat([told, told]),
        )

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
