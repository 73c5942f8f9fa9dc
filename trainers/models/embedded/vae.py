"""The autoencoder: 32x32 images to 8x8x4 latents, as in Stable Diffusion."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from trainers.models.embedded import world
from trainers.models.embedded.loop import Run, Schedule

SCHEDULE = Schedule(steps=5000, learning_rate=2e-3, average=0.997)
BATCH = 24
IMAGES = 40_000
SEED = 11
KL_WEIGHT = 1e-3  # per latent number; large enough to keep the latents smooth, too small to blur
EDGE_WEIGHT = 1.0


def build() -> AutoencoderKL:
    """The untrained autoencoder; latents need no further scaling once `whiten` has run."""
    torch.manual_seed(SEED)
    model = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=world.IMAGE_SIZE,
        scaling_factor=1.0,
    )
    return model.to(memory_format=torch.channels_last)


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, horizontal and vertical."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels and on edges: the edge term is what keeps small shapes from blurring."""
    pixels = functional.l1_loss(output, target)
    pairs = zip(edges(output), edges(target), strict=True)
    return pixels + EDGE_WEIGHT * sum((functional.l1_loss(a, b) for a, b in pairs), torch.zeros(()))


@torch.no_grad()
def psnr(model: AutoencoderKL, images: Tensor) -> float:
    """Peak signal-to-noise ratio of reconstructions from the posterior's mean, dB, mean over images."""
    values = []
    for part in torch.split(images, 256):
        target = world.as_float(part)
        output = model.decode(model.encode(target).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(-10 * ((output - target) / 2).square().mean(dim=(1, 2, 3)).log10())
    return float(torch.cat(values).mean())


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior means of byte images, [count, 4, 8, 8]."""
    return torch.cat(
        [model.encode(world.as_float(part)).latent_dist.mode() for part in torch.split(images, 256)]
    )


@torch.no_grad()
def whiten(model: AutoencoderKL, images: Tensor) -> None:
    """Folds centring and scaling of the latent channels into the 1x1 convolutions around them.

    Afterwards every latent channel has mean 0 and variance 1 over `images`, exactly what the noise
    schedule of the diffusion model assumes, and no user needs to know a shift or a scale.
    """
    latents = encode(model, images)
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    before, after = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()  # log-variances
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]


def train(work: Path) -> AutoencoderKL:
    """Trains, or continues, and returns the autoencoder with whitened latents."""
    model = build()
    run = Run([model], SCHEDULE, work / "vae.safetensors")
    pool, _ = world.splits()
    images = torch.empty(0) if run.finished else world.draw(pool, IMAGES, SEED)[0]

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        del step
        target = world.as_float(images[torch.randint(IMAGES, (BATCH,), generator=generator)])
        posterior = model.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        output = model.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        distance = reconstruction_loss(output, target)
        error = (output - target).detach().square().mean()
        figures = {
            "loss": float(distance.detach()),
            "kl": float(divergence.detach()),
            "psnr": float(-10 * (error / 4).log10()),
        }
        return distance + KL_WEIGHT * divergence, figures

    run.train("vae", loss, SEED)
    whiten(model, world.draw(pool, 4000, SEED + 1)[0])
    return model.eval().requires_grad_(requires_grad=False)
