"""A Stable Diffusion pipeline of a few thousand random weights: loaded in a moment, sampled in milliseconds."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load, save
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from trainers.adapters.files import CONFIG, WEIGHTS
from trainers.config import LoraConfig, ModelConfig, PromptsConfig, SamplingConfig, TrainingConfig
from trainers.diffusion.scheduler import ddim_scheduler
from trainers.models.embedded.tokenizer import END, START, WORD_END, learn_merges
from trainers.models.layers.trained_lora import Adapter
from trainers.models.pipeline_policy import PipelinePolicy

WORDS = ("blue", "circle", "green", "red", "square", "triangle")
PROMPTS = ("red circle", "blue square", "green triangle")


def silence() -> None:
    """No progress bars, and no advice about random weights."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def tokenizer(length: int) -> CLIPTokenizer:
    alphabet = sorted(ByteLevel.alphabet())
    merges = learn_merges(list(WORDS))
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    tokens += [token for token in dict.fromkeys(a + b for a, b in merges) if token not in set(tokens)]
    tokens += [START, END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        model_max_length=length,
        pad_token=END,
    )


def write(
    folder: Path,
    *,
    widths: tuple[int, ...] = (8, 16),
    cross: int = 12,
    length: int = 9,
    latent: int = 4,
    prediction: str = "epsilon",
    scheduler: type[Any] = DDIMScheduler,
    alpha_to_one: bool = False,
    channels: int = 4,
    unet: dict[str, Any] | None = None,
    **levels: Any,
) -> Path:
    """Write the pipeline and return its folder.

    Args:
        folder: Where.
        widths: Channels of the UNet's levels, multiples of 4.
        cross: Width of the text embedding, a multiple of 2.
        length: Tokens of a prompt.
        latent: Height and width of the latents; images are twice as large.
        prediction: What the network predicts.
        scheduler: Class of the scheduler.
        alpha_to_one: Its ``set_alpha_to_one``.
        channels: That the UNet takes.
        unet: Further settings of the UNet.
        levels: Further settings of the scheduler.
    """
    silence()
    words = tokenizer(length)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        denoiser = UNet2DConditionModel(
            sample_size=latent,
            in_channels=channels,
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", *("DownBlock2D",) * (len(widths) - 1)),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=(*("UpBlock2D",) * (len(widths) - 1), "CrossAttnUpBlock2D"),
            cross_attention_dim=cross,
            attention_head_dim=2,
            norm_num_groups=4,
            **(unet or {}),
        )
        autoencoder = AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=2 * latent,
        )
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=cross,
                intermediate_size=2 * cross,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=length,
                projection_dim=cross,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        )
        with torch.no_grad():
            # Words far enough apart that a prompt matters.
            encoder.get_input_embeddings().weight.mul_(20.0)
    StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=words,
        unet=denoiser,
        scheduler=scheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            set_alpha_to_one=alpha_to_one,
            steps_offset=1,
            prediction_type=prediction,
            **({"clip_sample": False} if scheduler is DDIMScheduler else {}),
            **levels,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def policy(
    folder: Path,
    *,
    steps: int = 4,
    guidance: float | None = None,
    rest: int = 0,
    order: Literal[1, 2] = 1,
    rank: int = 2,
    alpha: float | None = None,
    trained: float = 0.0,
    train: tuple[str, ...] = PROMPTS,
    lora: LoraConfig | None = None,
    quantise: Literal["nf4"] | None = None,
    **training: Any,
) -> PipelinePolicy:
    """Return a policy on the pipeline in a folder; ``trained`` is the deviation of its adapter's matrices."""
    torch.manual_seed(0)
    built = PipelinePolicy.build(
        ModelConfig(
            pretrained=str(folder), lora=lora or LoraConfig(rank=rank, alpha=alpha), quantise=quantise
        ),
        PromptsConfig(train=train, evaluate=("red square", "blue circle")),
        SamplingConfig(
            steps=steps,
            guidance=guidance,
            rest=rest,
            order=order,
            spacing=None if order == 1 else "trailing",
        ),
        TrainingConfig(**training),
    )
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in built.parameters().values():
                parameter.copy_(trained * torch.randn(parameter.shape, generator=generator))
    return built


def plain(folder: Path) -> StableDiffusionPipeline:
    """Return the pipeline as a user of diffusers loads it, with the scheduler that sampling uses."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = ddim_scheduler(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def multistep(folder: Path) -> StableDiffusionPipeline:
    """Return it with diffusers' own sampler of second order."""
    pipeline = plain(folder)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config,
        algorithm_type="sde-dpmsolver++",
        timestep_spacing="trailing",
        final_sigmas_type="sigma_min",
        euler_at_final=True,
    )
    return pipeline


def adapter(
    folder: Path,
    into: Path,
    *,
    seed: int,
    rank: int = 2,
    alpha: float | None = None,
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"),
    size: float = 0.2,
) -> Path:
    """Write a random adapter of the pipeline in a folder, alpha in its settings, and return the directory ``into``."""
    made = Adapter(plain(folder).unet, LoraConfig(rank=rank, targets=targets))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters().values():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    into.mkdir(parents=True, exist_ok=True)
    for name, content in with_alpha(made.files(), rank if alpha is None else alpha).items():
        (into / name).write_bytes(content)
    return into


def with_alpha(files: dict[str, bytes], alpha: float) -> dict[str, bytes]:
    """Return an adapter with another alpha in its metadata and in its settings, and the same matrices."""
    config = json.loads(files[CONFIG]) | {"lora_alpha": alpha}
    stated = json.dumps({f"unet.{key}": value for key, value in config.items()}, sort_keys=True)
    return {
        WEIGHTS: save(load(files[WEIGHTS]), {"format": "pt", "lora_adapter_metadata": stated}),
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }
