"""From trained modules to directories that diffusers and transformers load with `from_pretrained`."""

from pathlib import Path

from diffusers import (
    AutoencoderKL,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from trainers.models.embedded import flow, unet, world

LIMIT = 14_500_000  # bytes of all weights together


def export_pipeline(
    autoencoder: AutoencoderKL,
    denoiser: UNet2DConditionModel,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    directory: Path,
) -> None:
    """Writes the Stable Diffusion directory, convolutional parts in half precision.

    The text encoder stays in float32: transformers loads a model in the precision it was stored in,
    diffusers in float32, and a pipeline of both would not run. It is the smallest part anyway.
    """
    StableDiffusionPipeline(
        vae=autoencoder.half(),
        text_encoder=encoder.float(),
        tokenizer=tokenizer,
        unet=denoiser.half(),
        scheduler=unet.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory, safe_serialization=True)


def export_flow(
    autoencoder: AutoencoderKL,
    transformer: SD3Transformer2DModel,
    encoders: list[CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    directory: Path,
) -> None:
    """Writes the Stable Diffusion 3 directory, without T5, in the precisions of the other pipeline."""
    settings = {key: value for key, value in autoencoder.config.items() if not key.startswith("_")}
    settings["shift_factor"] = 0.0  # that pipeline adds it, and does not take None
    own = AutoencoderKL(**settings)
    own.load_state_dict(autoencoder.state_dict())
    first, second = encoders
    StableDiffusion3Pipeline(
        transformer=transformer.half(),
        scheduler=flow.build_scheduler(),
        vae=own.half(),
        text_encoder=first.float(),
        tokenizer=tokenizer,
        text_encoder_2=second.float(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(directory, safe_serialization=True)


def export_twin(twin: CLIPModel, tokenizer: CLIPTokenizer, directory: Path) -> None:
    """Writes the CLIP directory, in float32: rewards should not round, and it is small."""
    twin.float().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    size = world.IMAGE_SIZE
    CLIPImageProcessor(
        size={"height": size, "width": size},
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(directory)


def write_prompts(directory: Path) -> None:
    """Writes the prompt sets, one caption per line."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, prompts in world.prompt_sets().items():
        (directory / name).write_text("\n".join(prompts) + "\n")


def check_size(directory: Path) -> int:
    """Bytes of the exported weights below a directory.

    Raises:
        ValueError: If they exceed what the package may carry.
    """
    weights = [
        path for part in ("pipeline", "clip", "flow") for path in (directory / part).rglob("*.safetensors")
    ]
    size = sum(path.stat().st_size for path in weights)
    if size > LIMIT:
        raise ValueError(f"the weights must fit in {LIMIT} bytes together, but have {size}")
    for path in weights:
        path.chmod(0o644)  # safetensors writes for the owner only, but a package is for everyone
    return size
