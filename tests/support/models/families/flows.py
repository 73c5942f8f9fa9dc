"""The shipped flow model before training, with values where it begins with zeros."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from trainers.models.embedded import export, flow, tokenizer

Untrained = tuple[CLIPTokenizer, SD3Transformer2DModel, list[CLIPTextModelWithProjection]]


def untrained() -> Untrained:
    """Tokenizer, transformer and text encoders."""
    words = tokenizer.build()
    transformer, encoders = flow.build(words)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return words, transformer.eval(), [encoder.eval() for encoder in encoders]


def autoencoder(scaling_factor: float) -> AutoencoderKL:
    """A small one with random weights, of the shipped one's latents."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=scaling_factor,
    )


def write_flow(folder: Path) -> Path:
    """Write a pipeline of Stable Diffusion 3 with random weights, T5 left out."""
    words, transformer, encoders = untrained()
    export.export_flow(autoencoder(1.3), transformer, encoders, words, folder)
    return folder
