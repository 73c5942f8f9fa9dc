"""FLUX.2: latents in patches whose statistics a batch norm has, and texts of several layers of a language model."""

from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor, nn

from trainers.models.families.base import CPU, Conditions
from trainers.models.families.flow import Flow, exactly, places
from trainers.models.shifted import Shifted
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import FLUX_2, FLUX_2_KLEIN, Family


class Flux2(Flow):
    """Asked with the noise level, and told its guidance."""

    form: ClassVar[Family] = FLUX_2

    def shift(self, scheduler: Any, pixels: int, steps: int) -> float:
        """Return how far levels are shifted, which depends on the number of steps too."""
        del scheduler
        return float(compute_empirical_mu(pixels, steps))

    def encode(self, pipeline: Any, texts: list[str], asked: Asked) -> Conditions:
        """Return the states of three layers of the text encoder side by side, and the guidance that is told."""
        sequence, _ = pipeline.encode_prompt(texts, device=CPU, max_sequence_length=asked.tokens)
        told = None if asked.told is None else sequence.new_full((len(texts),), asked.told)
        return Conditions(sequence=sequence, guidance=told)

    def told(self, configs: Configs, asked: Asked) -> dict[str, tuple[int, ...]]:
        """Return the shape of the text encoder's states, and of the guidance that is told."""
        width = int(configs["transformer"]["joint_attention_dim"])
        shapes: dict[str, tuple[int, ...]] = {"sequence": (asked.tokens or 0, width)}
        return shapes if asked.told is None else {**shapes, "guidance": ()}

    def ask(self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions) -> Tensor | Shifted:
        """Return what the transformer predicts; patches have places, and so do the tokens of a text."""
        time = level.expand(len(latents))
        height, width = latents.shape[-2:]
        images = nn.functional.pad(places(height, width, latents.device), (0, 1))
        tokens = torch.arange(conditions.sequence.shape[1], device=latents.device)
        with exactly(network.time_guidance_embed, time):
            output = network(
                hidden_states=latents.flatten(2).transpose(1, 2),
                timestep=time / 1000,
                guidance=conditions.guidance,
                encoder_hidden_states=conditions.sequence,
                txt_ids=nn.functional.pad(tokens[:, None], (3, 0)),
                img_ids=images,
                return_dict=False,
            )[0]
        found: Tensor | Shifted = output.transpose(1, 2).reshape(latents.shape)
        return found

    def unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents with the statistics of the batch norm, and as pixels of their own."""
        mean, deviation = _statistics(vae)
        return nn.functional.pixel_shuffle(latents * deviation + mean, self.form.patch)

    def taken(self, pipeline: Any, latents: Tensor, like: Tensor) -> Tensor:
        """Return latents in patches; one pipeline gives them in a sequence, the other decoded so far."""
        if latents.ndim == like.ndim:
            mean, deviation = _statistics(pipeline.vae)
            return (nn.functional.pixel_unshuffle(latents, self.form.patch) - mean) / deviation
        return latents.transpose(1, 2).reshape(like.shape)


class Flux2Klein(Flux2):
    """Guided without a classifier, unless it was distilled to draw without guidance."""

    form: ClassVar[Family] = FLUX_2_KLEIN


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of latents by channel, ``[C, 1, 1]``, float32."""
    mean, variance = (value.float()[:, None, None] for value in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()
