"""A pipeline of SDXL with a few thousand random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from support import tiny_pipeline


def write_xl(folder: Path, *, zeros: bool = True, **unet: Any) -> Path:
    """Write a pipeline of SDXL with random weights, not square; ``zeros`` stand for no negative prompt."""
    words = tiny_pipeline.tokenizer(9)
    common: dict[str, Any] = {
        "vocab_size": len(words),
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 9,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        encoders = (
            CLIPTextModel(CLIPTextConfig(hidden_size=8, projection_dim=8, **common)),
            CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=12, projection_dim=10, **common)),
        )
        with torch.no_grad():
            for encoder in encoders:
                encoder.get_input_embeddings().weight.mul_(20.0)
        settings: dict[str, Any] = {
            "sample_size": (8, 12),
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 20,
            "attention_head_dim": (2, 4),
            "norm_num_groups": 4,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 34,
        }
        StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                block_out_channels=(4, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
                scaling_factor=0.13025,
            ),
            text_encoder=encoders[0],
            text_encoder_2=encoders[1],
            tokenizer=words,
            tokenizer_2=words,
            unet=UNet2DConditionModel(**settings | unet),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                timestep_spacing="leading",
            ),
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        ).save_pretrained(folder)
    return folder
