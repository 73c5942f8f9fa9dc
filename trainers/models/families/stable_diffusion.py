"""Stable Diffusion 1.x and 2.x: a UNet with cross-attention to one text encoder, on a diffusion's levels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor

from trainers.config import DeployedConfig, SamplingConfig
from trainers.diffusion.schedule import StepTable
from trainers.diffusion.scheduler import ddim_scheduler, scheduler_steps
from trainers.models.families.base import CPU, Conditions, NetworkFamily, call_of, clip_tokens
from trainers.models.shifted import Shifted
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import STABLE_DIFFUSION, Family

_SCHEDULERS: dict[str, Any] = {"ode": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}


class StableDiffusion(NetworkFamily):
    """Asked with an integer timestep; predicts noise, velocity or the sample, as its scheduler says."""

    form: ClassVar[Family] = STABLE_DIFFUSION

    def load(self, source: str, **options: Any) -> Any:
        """Return the pipeline; the safety checker judges photographs, not samples of a sweep."""
        return StableDiffusionPipeline.from_pretrained(
            source, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **options
        )

    def steps(
        self, scheduler: Any, sampling: SamplingConfig, shape: tuple[int, int, int]
    ) -> tuple[Sequence[float], StepTable]:
        """Return timesteps and steps of DDIM on the scheduler's levels, whatever the image."""
        del shape
        return scheduler_steps(
            scheduler, sampling.steps, sampling.eta, order=sampling.order, spacing=sampling.spacing
        )

    def deployed(self, scheduler: Any, used: DeployedConfig, shape: tuple[int, int, int]) -> Any:
        """Return DDIM or DPM-Solver++, whatever the image.

        Raises:
            ValueError: Steps go beyond the noise levels.
        """
        del shape
        made = _SCHEDULERS[used.sampler].from_config(scheduler)
        levels = made.config.num_train_timesteps
        if used.steps <= levels:
            made.set_timesteps(used.steps)
        if used.steps > levels or int(made.timesteps.max()) >= levels:
            raise ValueError(
                f"evaluation.as_deployed.steps: {used.steps} steps of {used.sampler} go beyond the {levels} noise "
                "levels of the model: take fewer"
            )
        return made

    def prediction(self, scheduler: Any) -> str:
        """Return what the scheduler says."""
        return str(scheduler.get("prediction_type", "epsilon"))

    def encode(self, pipeline: Any, texts: list[str], asked: Asked) -> Conditions:
        """Return the last states of the text encoder."""
        del asked
        states, _ = pipeline.encode_prompt(texts, CPU, 1, do_classifier_free_guidance=False)
        return Conditions(sequence=states)

    def told(self, configs: Configs, asked: Asked) -> dict[str, tuple[int, ...]]:
        """Return the shape of the text encoder's states."""
        del asked
        return {"sequence": (clip_tokens(configs), _width(configs["unet"]))}

    def ask(self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions) -> Tensor | Shifted:
        """Return what the UNet predicts."""
        output: Tensor | Shifted = network(
            latents, level, encoder_hidden_states=conditions.sequence, return_dict=False
        )[0]
        return output

    def unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents without their scale."""
        return latents / float(vae.config.scaling_factor)

    def own(
        self,
        pipeline: Any,
        prompts: list[str],
        sampling: SamplingConfig,
        noise: Tensor,
        asked: Asked,
        **options: Any,
    ) -> Tensor:
        """Return what DDIM makes of noise."""
        pipeline.scheduler = ddim_scheduler(pipeline.scheduler.config, sampling.spacing)
        told = {"output_type": "latent", **call_of(asked, prompts), **options}
        found: Tensor = pipeline(num_inference_steps=sampling.steps, latents=noise, **told).images
        return found

    def save_adapter(self, folder: Path, layers: dict[str, Tensor], settings: dict[str, Any]) -> None:
        """Write the adapter of a UNet."""
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=layers, unet_lora_adapter_metadata=settings
        )


def _width(unet: Mapping[str, Any]) -> int:
    """Return the width of a text's tokens."""
    return int(unet.get("encoder_hid_dim") or unet["cross_attention_dim"])
