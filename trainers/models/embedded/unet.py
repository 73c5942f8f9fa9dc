"""The denoiser and its text encoder, trained together on cached latents."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from trainers.models.embedded import texts, vae, world
from trainers.models.embedded.loop import Run, Schedule

SCHEDULE = Schedule(steps=4500, horizon=6000, cooldown=2400, learning_rate=1.5e-3, warmup=200, average=0.999)
BATCH = 64
IMAGES = 60_000
SEED = 23
DROPPED = 0.1  # share of captions emptied, for classifier-free guidance
SNR_CAP = 5.0  # min-SNR weighting (Hang et al. 2023): steps that decide shapes get their share


def build_scheduler() -> DDIMScheduler:
    """The scheduler settings of Stable Diffusion 1.5."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def build(tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Untrained denoiser and text encoder."""
    torch.manual_seed(SEED)
    denoiser = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=texts.WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads: one per attribute
        norm_num_groups=16,
    )
    return denoiser.to(memory_format=torch.channels_last), CLIPTextModel(texts.config(tokenizer))


def cached_latents(autoencoder: AutoencoderKL, work: Path) -> tuple[Tensor, Tensor]:
    """Latents [images, 4, 8, 8] of training scenes and their labels, encoded once and stored."""
    path = work / "latents.safetensors"
    if not path.exists():
        images, labels = world.draw(world.splits()[0], IMAGES, SEED)
        partial = path.with_suffix(".partial")
        save_file({"latents": vae.encode(autoencoder, images).contiguous(), "labels": labels}, partial)
        partial.replace(path)
    stored = load_file(path)
    return stored["latents"], stored["labels"]


def train(
    autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, work: Path
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Trains, or continues, and returns denoiser and text encoder."""
    denoiser, encoder = build(tokenizer)
    run = Run([denoiser, encoder], SCHEDULE, work / "unet.safetensors")
    latents, labels = cached_latents(autoencoder, work)
    captions, rows = texts.training_captions(tokenizer, labels)
    alphas = build_scheduler().alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=SNR_CAP) / snr  # [timesteps], for a loss on epsilon

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        del step
        chosen = torch.randint(len(latents), (BATCH,), generator=generator)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(len(alphas), (BATCH,), generator=generator)
        signal = alphas[times][:, None, None, None]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        empty = torch.rand(BATCH, generator=generator) < DROPPED
        prompts = captions[torch.where(empty, len(captions) - 1, rows[chosen])]
        states = encoder(prompts).last_hidden_state
        noisy = noisy.to(memory_format=torch.channels_last)
        errors = (denoiser(noisy, times, states).sample - noise).square().mean(dim=(1, 2, 3))
        value = (weights[times] * errors).mean()
        return value, {"loss": float(value.detach()), "eps_mse": float(errors.detach().mean())}

    run.train("unet", loss, SEED)
    return denoiser.eval(), encoder.eval()
