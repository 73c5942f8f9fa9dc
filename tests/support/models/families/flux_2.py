"""Pipelines of FLUX.2, dev and klein, with a few thousand random weights."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen3ForCausalLM

from support import tiny_pipeline
from support.models.families import qwen_texts
from support.models.families.flux import spread

DEEP = {False: 30, True: 27}
"""Layers of the text encoder, of which three are read, without and with klein."""


def write_flux_2(folder: Path, *, klein: bool = True, distilled: bool = False) -> Path:
    """Write a pipeline with random weights; its text encoder is of klein's kind in either case."""
    tiny_pipeline.silence()
    words = qwen_texts.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        encoder = Qwen3ForCausalLM(qwen_texts.config(words, num_hidden_layers=DEEP[klein]))
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=not klein,
        )
        vae = AutoencoderKLFlux2(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
        )
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
        spread(transformer, encoder.get_input_embeddings())
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": vae,
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": transformer,
    }
    made = Flux2KleinPipeline(**parts, is_distilled=distilled) if klein else Flux2Pipeline(**parts)
    made.save_pretrained(folder)
    return folder
