"""A pipeline of Z-Image with a few thousand random weights."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Model

from support import tiny_pipeline
from support.models.families import qwen_texts
from support.models.families.flux import small_autoencoder, spread


def write_z_image(folder: Path) -> Path:
    """Write a pipeline with random weights."""
    tiny_pipeline.silence()
    words = qwen_texts.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        encoder = Qwen3Model(qwen_texts.config(words))
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=16,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=8,
            axes_dims=[4, 2, 2],
            axes_lens=[256, 32, 32],
        )
        vae = small_autoencoder()
        spread(transformer, encoder.get_input_embeddings())
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=encoder,
        tokenizer=words,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder
