"""A pipeline of FLUX.1 with a few thousand random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel

from support import tiny_pipeline
from support.models.families.t5 import encoder, pieces

SIZE = {"height": 16, "width": 24, "max_sequence_length": 7}
"""Of its images, pixels, and tokens of T5."""


def write_flux(folder: Path, *, guidance: bool = True) -> Path:
    """Write a pipeline with random weights, told its guidance or not."""
    tiny_pipeline.silence()
    words = tiny_pipeline.tokenizer(9)
    read = pieces()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=9,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        )
        t5 = encoder(read, width=12)
        settings: dict[str, Any] = {"guidance_embeds": guidance, "axes_dims_rope": (2, 2, 4)}
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=8,
            **settings,
        )
        vae = small_autoencoder()
        spread(transformer, clip.get_input_embeddings(), t5.get_input_embeddings())
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=clip,
        tokenizer=words,
        text_encoder_2=t5,
        tokenizer_2=read,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def small_autoencoder() -> AutoencoderKL:
    """Latents of four channels, each pixel of which is two a side of the image."""
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.36,
        shift_factor=0.12,
    )


def spread(network: torch.nn.Module, *words: torch.nn.Module) -> None:
    """Give values to what begins with zeros, and set words far enough apart that a prompt matters."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
        for embedding in words:
            for parameter in embedding.parameters():
                parameter.mul_(20.0)
