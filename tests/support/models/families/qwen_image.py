"""A pipeline of Qwen-Image with a few thousand random weights."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen3Model

from support import tiny_pipeline
from support.models.families import qwen_texts
from support.models.families.flux import spread


def write_qwen_image(folder: Path) -> Path:
    """Write a pipeline with random weights; its text encoder is of another kind of Qwen's, which is asked alike."""
    tiny_pipeline.silence()
    words = qwen_texts.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        encoder = Qwen3Model(qwen_texts.config(words))
        transformer = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(4, 2, 2),
        )
        vae = AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 2.0, 0.5, 1.5],
        )
        spread(transformer, encoder.get_input_embeddings())
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=vae,
        text_encoder=encoder,
        tokenizer=words,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder
