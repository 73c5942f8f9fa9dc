"""A pipeline of Stable Diffusion 3 with a few thousand random weights and all three text encoders."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from support import tiny_pipeline
from support.models.families.flux import small_autoencoder, spread
from support.models.families.t5 import encoder, pieces


def write_sd3(folder: Path) -> Path:
    """Write a pipeline with random weights."""
    tiny_pipeline.silence()
    words, read = tiny_pipeline.tokenizer(9), pieces()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        clips = [
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    vocab_size=len(words),
                    hidden_size=width,
                    intermediate_size=16,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    max_position_embeddings=9,
                    projection_dim=width,
                    bos_token_id=words.bos_token_id,
                    eos_token_id=words.eos_token_id,
                    pad_token_id=words.pad_token_id,
                )
            )
            for width in (4, 6)
        ]
        t5 = encoder(read, width=12)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=16,
        )
        vae = small_autoencoder()
        spread(transformer, *(part.get_input_embeddings() for part in (*clips, t5)))
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clips[0],
        tokenizer=words,
        text_encoder_2=clips[1],
        tokenizer_2=words,
        text_encoder_3=t5,
        tokenizer_3=read,
    ).save_pretrained(folder)
    return folder
