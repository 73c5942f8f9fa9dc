"""What families trained by flow matching share: ``x = (1 − t) x_0 + t ε``, of which the velocity is predicted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from trainers.config import DeployedConfig, SamplingConfig
from trainers.diffusion.schedule import StepTable
from trainers.diffusion.scheduler import flow_steps
from trainers.models.families.base import NetworkFamily, call_of
from trainers.pipelines.asking import Asked
from trainers.pipelines.families import Family

_SHIFTS = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
"""What diffusers takes where a scheduler's configuration does not say how levels depend on the image."""


class Flow(NetworkFamily):
    """Predicts ``ε − x_0`` on evenly spaced levels, which its scheduler shifts once."""

    form: ClassVar[Family]
    sequence: ClassVar[bool] = False
    """Whether the pipeline's call takes and gives latents as a sequence of patches of two by two."""
    even: ClassVar[bool] = True
    """Whether the pipeline's call asks its scheduler for even levels; else for what the scheduler takes by itself."""

    @property
    def pipeline(self) -> Any:
        """The class of diffusers."""
        return getattr(diffusers, self.form.pipelines[0])

    def load(self, source: str, **options: Any) -> Any:
        """Return the pipeline."""
        return self.pipeline.from_pretrained(source, **options)

    def steps(
        self, scheduler: Any, sampling: SamplingConfig, shape: tuple[int, int, int]
    ) -> tuple[Sequence[float], StepTable]:
        """Return times, in thousandths, and steps on evenly spaced levels that are shifted once.

        Raises:
            ValueError: No step rests, and the last one has no noise.
        """
        if sampling.rest < 1:
            raise ValueError(
                "sampling.rest must be at least 1 for a model trained by flow matching, got 0: its last step has no "
                "noise, and an adapter that acted there would have an infinite KL"
            )
        mu = self.shift(scheduler, self.pixels(shape), sampling.steps)
        return flow_steps(scheduler, sampling.steps, sampling.eta, order=sampling.order, mu=mu)

    def deployed(self, scheduler: Any, used: DeployedConfig, shape: tuple[int, int, int]) -> Any:
        """Return Euler's steps on the levels that the pipeline's call takes by itself."""
        made = FlowMatchEulerDiscreteScheduler.from_config(scheduler)
        told = {"sigmas": np.linspace(1.0, 1 / used.steps, used.steps)} if self.even else {}
        mu = self.shift(made.config, self.pixels(shape), used.steps)
        made.set_timesteps(used.steps, mu=mu, **told)
        return made

    def pixels(self, shape: tuple[int, int, int]) -> int:
        """Return how many pixels the network sees of latents, its patches."""
        each = 1 if self.form.patched else self.form.patch
        return (shape[1] // each) * (shape[2] // each)

    def shift(self, scheduler: Any, pixels: int, steps: int) -> float:
        """Return how far levels of an image are shifted where it depends on it: linear in its pixels."""
        del steps
        first, last, low, high = (float(scheduler.get(key, default)) for key, default in _SHIFTS.items())
        return low + (high - low) / (last - first) * (pixels - first)

    def prediction(self, scheduler: Any) -> str:
        """Return that of flow matching, whatever the scheduler says."""
        del scheduler
        return "flow"

    def unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents without their scale and shift."""
        return latents / float(vae.config.scaling_factor) + float(vae.config.shift_factor)

    def own(
        self,
        pipeline: Any,
        prompts: list[str],
        sampling: SamplingConfig,
        noise: Tensor,
        asked: Asked,
        **options: Any,
    ) -> Tensor:
        """Return what Euler's steps make of noise, on even levels that the scheduler shifts."""
        told = {"output_type": "latent", **call_of(asked, prompts), **options}
        found: Tensor = pipeline(
            sigmas=[1.0 - step / sampling.steps for step in range(sampling.steps)],
            num_inference_steps=sampling.steps,
            latents=self.given(noise),
            **told,
        ).images
        return self.taken(pipeline, found, noise) if told["output_type"] == "latent" else found

    def given(self, latents: Tensor) -> Tensor:
        """Return latents as the pipeline's call takes them: as they are, or as a sequence of patches."""
        found: Tensor = packed(latents) if self.sequence else latents
        return found

    def taken(self, pipeline: Any, latents: Tensor, like: Tensor) -> Tensor:
        """Return what the pipeline's call gives, as latents of a shape."""
        del pipeline
        found: Tensor = unpacked(latents, like) if self.sequence else latents
        return found

    def save_adapter(self, folder: Any, layers: dict[str, Tensor], settings: dict[str, Any]) -> None:
        """Write the adapter of a transformer."""
        self.pipeline.save_lora_weights(
            folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=settings
        )


def packed(latents: Any) -> Any:
    """Return latents ``[batch, C, h, w]``, tensors or pairs, as patches of two by two, ``[batch, h w / 4, 4 C]``."""
    batch, channels, height, width = latents.shape
    cut = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def unpacked(patches: Any, like: Any) -> Any:
    """Return the latents of packed ones, tensors or pairs, in the shape of others."""
    batch, channels, height, width = like.shape
    cut = patches.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """Return the places of patches, row by row, after a coordinate that is 0: ``[height width, 3]``."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)


@contextmanager
def exactly(embedding: Any, time: Tensor) -> Iterator[None]:
    """Let a network embed a time as it is, which it would round to the precision of its weights first."""
    if not hasattr(embedding, "exact_time"):
        # One hook for all calls, which a compiled network then knows.
        embedding.register_forward_pre_hook(_told_exactly)
    embedding.exact_time = time
    try:
        yield
    finally:
        embedding.exact_time = None


def _told_exactly(embedding: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    exact = embedding.exact_time
    return given if exact is None else (exact, *given[1:])
