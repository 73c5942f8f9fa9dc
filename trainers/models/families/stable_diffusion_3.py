"""Stable Diffusion 3 and 3.5: a transformer of two streams, images and text, trained by flow matching."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor

from trainers.config import SamplingConfig
from trainers.diffusion.schedule import StepTable
from trainers.diffusion.scheduler import flow_steps
from trainers.models.families.base import CPU, Conditions, side_by_side
from trainers.models.shifted import Shifted
from trainers.pipelines.families import STABLE_DIFFUSION_3, Family, left_out

T5_TOKENS = 256
"""Of T5, as the pipeline has them by default."""


class StableDiffusion3:
    """Asked with 1000 times the noise level; predicts the velocity ``ε − x_0``."""

    form: ClassVar[Family] = STABLE_DIFFUSION_3

    def load(self, source: str, **options: Any) -> Any:
        """Return the pipeline; diffusers wants to be told what its index says is left out."""
        told = {key: options[key] for key in ("revision",) if options.get(key) is not None}
        index = DiffusionPipeline.load_config(source, **told)
        return StableDiffusion3Pipeline.from_pretrained(
            source, **dict.fromkeys(left_out(self.form, index)), **options
        )

    def steps(self, scheduler: Any, sampling: SamplingConfig) -> tuple[Sequence[float], StepTable]:
        """Return times, in thousandths, and steps on evenly spaced levels that are shifted once.

        Raises:
            ValueError: No step rests, and the last one has no noise.
        """
        if sampling.rest < 1:
            raise ValueError(
                "sampling.rest must be at least 1 for a model trained by flow matching, got 0: its last step has no "
                "noise, and an adapter that acted there would have an infinite KL"
            )
        return flow_steps(scheduler, sampling.steps, sampling.eta, order=sampling.order)

    def prediction(self, scheduler: Any) -> str:
        """Return that of flow matching, whatever the scheduler says."""
        del scheduler
        return "flow"

    def latent_shape(self, network: Any) -> tuple[int, int, int]:
        """Return the shape of the transformer's samples."""
        return (int(network.config.in_channels), *side_by_side(network.config.sample_size))

    def encode(self, pipeline: Any, prompt: str, *, guided: bool) -> Conditions:
        """Return the states of the text encoders in one sequence, and the pooled ones.

        Without T5 its part is left out: diffusers fills it with zeros, ``max_sequence_length=0`` does the same as here.
        """
        embedding, empty, pooled, pooled_empty = pipeline.encode_prompt(
            prompt,
            None,
            None,
            device=CPU,
            do_classifier_free_guidance=guided,
            max_sequence_length=self._tokens(pipeline),
        )
        if not guided:
            return Conditions(sequence=embedding, pooled=pooled)
        return Conditions(sequence=torch.cat([empty, embedding]), pooled=torch.cat([pooled_empty, pooled]))

    def ask(self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions) -> Tensor | Shifted:
        """Return what the transformer predicts."""
        output: Tensor | Shifted = network(
            hidden_states=latents,
            timestep=level.expand(len(latents)),
            encoder_hidden_states=conditions.sequence,
            pooled_projections=conditions.pooled,
            return_dict=False,
        )[0]
        return output

    def unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents without their scale and shift."""
        return latents / float(vae.config.scaling_factor) + float(vae.config.shift_factor)

    def own(
        self, pipeline: Any, prompts: list[str], sampling: SamplingConfig, noise: Tensor, **options: Any
    ) -> Tensor:
        """Return what Euler's steps make of noise, on even levels that the scheduler shifts."""
        latents: Tensor = pipeline(
            prompts,
            sigmas=[1.0 - step / sampling.steps for step in range(sampling.steps)],
            num_inference_steps=sampling.steps,
            guidance_scale=1.0 if sampling.guidance is None else sampling.guidance,
            latents=noise,
            output_type="latent",
            **options,
            max_sequence_length=self._tokens(pipeline),
        ).images
        return latents

    @staticmethod
    def _tokens(pipeline: Any) -> int:
        """Return the tokens of T5; without it none."""
        return 0 if pipeline.text_encoder_3 is None else T5_TOKENS

    def save_adapter(self, folder: Path, layers: dict[str, Tensor], settings: dict[str, Any]) -> None:
        """Write the adapter of a transformer."""
        StableDiffusion3Pipeline.save_lora_weights(
            folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=settings
        )
