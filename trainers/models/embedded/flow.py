"""The flow model: a small MMDiT with its two text encoders, in the classes of Stable Diffusion 3, on the same latents.

Rectified flow: at noise level ``t`` from 1 to 0 a state is ``(1 − t) x_0 + t ε``, and the network predicts ``ε − x_0``.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from trainers.models.embedded import texts, unet
from trainers.models.embedded.loop import Run, Schedule

SCHEDULE = Schedule(steps=8000, horizon=10000, cooldown=3000, learning_rate=2e-3, warmup=200, average=0.999)
BATCH = 64
SEED = 29
DROPPED = 0.1  # share of captions emptied, for classifier-free guidance
TEXT_WIDTH = 32  # of either encoder; side by side they are as wide as the other pipeline's one
LEVELS = 1000.0  # of noise, as the network is told them
MOST_EMPTY = 256.0  # tokens of zeros that diffusers adds unless told otherwise, where there is no T5


class CountedAttention:
    """Joint attention in which the last token stands for many.

    Without T5 the pipeline adds ``max_sequence_length`` tokens of zeros to the captions. They have no positions, so
    they stay equal, and n equal tokens get the attention of one whose logit is log n higher: exactly as good, and no
    slower. Trained on any number of them, the model is as good at 0, which is fast, as at the default of 256.
    """

    def __init__(self) -> None:
        """Begin with one."""
        self.log_count = 0.0

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return what diffusers' ``JointAttnProcessor2_0`` does, image and text tokens."""
        batch, pixels = hidden_states.shape[:2]

        def heads(values: Tensor) -> Tensor:
            return values.view(*values.shape[:2], attn.heads, -1).transpose(1, 2)

        image = [heads(layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v)]
        words = [
            heads(layer(encoder_hidden_states))
            for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        image[:2] = [attn.norm_q(image[0]), attn.norm_k(image[1])]
        words[:2] = [attn.norm_added_q(words[0]), attn.norm_added_k(words[1])]
        query, key, value = (torch.cat(both, dim=2) for both in zip(image, words, strict=True))
        bias = None
        if self.log_count:
            bias = query.new_zeros(key.shape[2])
            bias[-1] = self.log_count
            bias = bias.expand(query.shape[2], -1)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        seen = seen.transpose(1, 2).reshape(batch, -1, query.shape[-1] * attn.heads)
        image_seen, words_seen = seen[:, :pixels], seen[:, pixels:]
        image_seen = attn.to_out[1](attn.to_out[0](image_seen))
        return image_seen, words_seen if attn.context_pre_only else attn.to_add_out(words_seen)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow without a shift of its noise levels: so few latents are decided late."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(LEVELS), shift=1.0)


def build(tokenizer: CLIPTokenizer) -> tuple[SD3Transformer2DModel, list[CLIPTextModelWithProjection]]:
    """Untrained transformer, a token for 2×2 pixels of latents as in Stable Diffusion 3, and text encoders."""
    torch.manual_seed(SEED)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        num_attention_heads=5,
        attention_head_dim=16,
        caption_projection_dim=80,
        joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    )
    # diffusers leaves to training what begins with zeros there: blocks that do nothing yet, and predict nothing.
    begins = [transformer.proj_out, transformer.norm_out.linear]
    for block in transformer.transformer_blocks:
        begins += [block.norm1.linear, block.norm1_context.linear]
    for layer in begins:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    config = texts.config(tokenizer, TEXT_WIDTH)
    return transformer, [CLIPTextModelWithProjection(config) for _ in range(2)]


def conditions(encoders: list[CLIPTextModelWithProjection], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences [batch, 16, 64] and pooled vectors [batch, 64] of token ids, as the pipeline makes them."""
    found = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    sequence = torch.cat([one.hidden_states[-2] for one in found], dim=-1)
    return sequence, torch.cat([one.text_embeds for one in found], dim=-1)


def levels(generator: torch.Generator) -> Tensor:
    """Noise levels of a batch: logit-normal (Esser et al. 2024), each in its own part, so that batches are alike."""
    places = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
    found: Tensor = torch.special.ndtri(places.clamp(1e-6, 1 - 1e-6)).sigmoid()
    return found


def train(
    autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, work: Path
) -> tuple[SD3Transformer2DModel, list[CLIPTextModelWithProjection]]:
    """Trains, or continues, and returns transformer and text encoders."""
    transformer, encoders = build(tokenizer)
    attention = CountedAttention()
    plain = transformer.attn_processors
    transformer.set_attn_processor(attention)
    run = Run([transformer, *encoders], SCHEDULE, work / "flow.safetensors")
    latents, labels = unet.cached_latents(autoencoder, work)
    captions, rows = texts.training_captions(tokenizer, labels)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        del step
        chosen = torch.randint(len(latents), (BATCH,), generator=generator)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        times = levels(generator)
        mixed = torch.lerp(clean, noise, times[:, None, None, None])
        empty = torch.rand(BATCH, generator=generator) < DROPPED
        sequence, pooled = conditions(encoders, captions[torch.where(empty, len(captions) - 1, rows[chosen])])
        added, count = torch.rand(2, generator=generator).tolist()
        attention.log_count = 0.0
        if added < 0.5:
            sequence = functional.pad(sequence, (0, 0, 0, 1))
            attention.log_count = count * float(torch.tensor(MOST_EMPTY).log())
        velocity = transformer(
            hidden_states=mixed,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            timestep=times * LEVELS,
            return_dict=False,
        )[0]
        value = (velocity - (noise - clean)).square().mean()
        return value, {"loss": float(value.detach())}

    run.train("flow", loss, SEED)
    transformer.set_attn_processor(plain)
    return transformer.eval(), [encoder.eval() for encoder in encoders]
