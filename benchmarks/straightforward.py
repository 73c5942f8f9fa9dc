"""A straightforward primal step on a Stable Diffusion pipeline, to compare ours with.

The way the paper's public code goes about it: a second full copy of the UNet is the reference, both predict at every
step, each call is checkpointed (recomputed in the backward pass) by default, prompts are encoded for every batch.
Where that code is wrong this is right: the KL is in nats, with the weights of the steps. LoRA, rewards, DDIM steps,
optimiser and clipping are those of ours, and with an adapter that never rests so are loss and gradient
(``python benchmarks/pipeline_throughput.py --check``).

The public code computes guidance in one pass over a doubled batch, and so does this; two passes are an option. It
also differentiates by default only the last fifth of the steps, and the KL of no other: ``last`` does the same.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import peft
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainers.config import LoraConfig
from trainers.models.pipeline import EMBEDDED_DIRECTORY
from trainers.rewards.base import Reward


class Straightforward:
    """The trained pipeline, its frozen copy of the UNet and the optimiser."""

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float],
        *,
        steps: int,
        guidance: float,
        learning_rate: float,
        gradient_clip: float,
        checkpointing: bool = True,
        passes: int = 1,
        last: int | None = None,
    ) -> None:
        """Load the shipped pipeline, copy its UNet and add the adapter.

        Args:
            rewards: By name.
            weights: Of each reward, nats per unit.
            steps: Of DDIM.
            guidance: Scale of classifier-free guidance.
            learning_rate: Of Adam.
            gradient_clip: Largest norm of a gradient.
            checkpointing: Recompute every call of a UNet in the backward pass.
            passes: 1 computes guidance on a doubled batch, 2 one half after the other.
            last: Steps that are differentiated; all by default.
        """
        self._rewards, self._weights = rewards, weights
        self._guidance, self._clip = guidance, gradient_clip
        self._checkpointing, self._passes = checkpointing, passes
        self._first = 0 if last is None else steps - last

        self._pipeline = StableDiffusionPipeline.from_pretrained(
            EMBEDDED_DIRECTORY,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            use_safetensors=True,
        )
        for part in (self._pipeline.text_encoder, self._pipeline.unet, self._pipeline.vae):
            part.requires_grad_(requires_grad=False).eval()
        self._unet = self._pipeline.unet
        self._reference = copy.deepcopy(self._unet)
        lora = LoraConfig()
        self._unet.add_adapter(
            peft.LoraConfig(
                r=lora.rank,
                lora_alpha=lora.rank,
                target_modules=list(lora.targets),
                init_lora_weights="gaussian",
            )
        )
        self._scheduler = self._pipeline.scheduler
        self._scheduler.set_timesteps(steps)
        self._kl_weights = [self._kl_weight(int(t)) for t in self._scheduler.timesteps]
        self._optimizer = torch.optim.Adam(self.parameters().values(), lr=learning_rate, betas=(0.9, 0.99))

    def parameters(self) -> dict[str, Tensor]:
        """Return the adapter's matrices."""
        return {name: p for name, p in self._unet.named_parameters() if p.requires_grad}

    def step(self, prompts: Sequence[str], noise: Tensor) -> None:
        """Take one optimiser step on a batch."""
        self._optimizer.zero_grad(set_to_none=True)
        self.loss(prompts, noise).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters().values(), self._clip)
        self._optimizer.step()

    def loss(self, prompts: Sequence[str], noise: Tensor) -> Tensor:
        """Return ``mean(KL − Σ w r)`` for noise ``[steps + 1, batch, C, h, w]``."""
        with torch.no_grad():
            conditional, empty = self._pipeline.encode_prompt(list(prompts), torch.device("cpu"), 1, True)
        path_kl = torch.zeros(len(prompts))
        latents = noise[0]
        for number, t in enumerate(self._scheduler.timesteps):
            with torch.set_grad_enabled(number >= self._first):
                predicted = self._guided(self._unet, latents, t, empty, conditional)
                reference = self._guided(self._reference, latents, t, empty, conditional)
            difference = (predicted - reference).flatten(1)
            path_kl = path_kl + self._kl_weights[number] * difference.square().sum(dim=1)
            latents = self._scheduler.step(
                predicted, t, latents, eta=1.0, variance_noise=noise[number + 1]
            ).prev_sample
        decoded = self._pipeline.vae.decode(latents / self._pipeline.vae.config.scaling_factor).sample
        images = (decoded / 2 + 0.5).clamp(0.0, 1.0)
        loss = path_kl.mean()
        for name, reward in self._rewards.items():
            loss = loss - self._weights[name] * reward(images, prompts).mean()
        return loss

    def _guided(self, unet: Any, latents: Tensor, t: Tensor, empty: Tensor, conditional: Tensor) -> Tensor:
        """Return the noise prediction after guidance."""
        if self._passes == 1:
            both = self._predict(unet, torch.cat([latents, latents]), t, torch.cat([empty, conditional]))
            without, given = both.chunk(2)
        else:
            without = self._predict(unet, latents, t, empty)
            given = self._predict(unet, latents, t, conditional)
        return without + self._guidance * (given - without)

    def _predict(self, unet: Any, latents: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        if self._checkpointing and torch.is_grad_enabled():
            predicted: Tensor = checkpoint(unet, latents, t, embedding, use_reentrant=False).sample
        else:
            predicted = unet(latents, t, embedding).sample
        return predicted

    def _kl_weight(self, t: int) -> float:
        """Return nats per squared difference of noise predictions, ``c_t² / (2 σ_t²)``."""
        scheduler = self._scheduler
        before = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        now = float(scheduler.alphas_cumprod[t])
        prev = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
        variance = (1 - prev) / (1 - now) * (1 - now / prev)
        factor = (1 - prev - variance) ** 0.5 - (prev * (1 - now) / now) ** 0.5
        return factor**2 / (2 * variance)
