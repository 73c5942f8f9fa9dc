"""Loading a Stable Diffusion 1.x pipeline: any diffusers directory or hub id, or the shipped one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from trainers.config import EMBEDDED, ModelConfig
from trainers.pipelines.configs import FILES, config_mistake
from trainers.pipelines.files import INDEX, directory_mistake

EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded" / "weights" / "pipeline"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What training needs of a pipeline."""

    pipeline: StableDiffusionPipeline
    """The whole, for its text side, which stays on the CPU: every prompt is encoded once."""
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    device: torch.device
    dtype: torch.dtype
    """Of the frozen weights."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet.config.in_channels), int(height), int(width)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images ``[batch, 3, h, w]`` in [0, 1], with gradients."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.dtype)
        images: Tensor = self.vae.decode(scaled).sample
        return (images.float() / 2 + 0.5).clamp(0.0, 1.0)

    def encode(self, prompt: str, *, guided: bool) -> Tensor:
        """Return the text embedding ``[1, length, d]``; guided, ``[2, length, d]`` with that of "" before it."""
        with torch.no_grad():
            embedding, empty = self.pipeline.encode_prompt(prompt, torch.device("cpu"), 1, guided)
        both = torch.cat([empty, embedding]) if guided else embedding
        return both.to(self.device, self.dtype)


def load_parts(model: ModelConfig, precision: str, device: str = "cpu") -> Parts:
    """Load a pipeline, frozen, onto a device: the caller knows which it was given, whatever else is visible.

    Raises:
        ValueError: it is no pipeline, lacks a component, is not of the SD 1.x family, or torch does not see the
            device; says what to do.
    """
    assert model.pretrained is not None
    place = _usable(device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    pipeline = _load(model.pretrained, model.revision, model.variant)
    if mistake := config_mistake({part: _config(getattr(pipeline, part)) for part in FILES}):
        raise ValueError(f"model.pretrained: {model.pretrained} {mistake}")
    for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        part.requires_grad_(requires_grad=False).eval()
    return Parts(
        pipeline=pipeline,
        unet=pipeline.unet.to(place, dtype, memory_format=torch.channels_last),
        vae=pipeline.vae.to(place, dtype, memory_format=torch.channels_last),
        device=place,
        dtype=dtype,
    )


def _usable(device: str) -> torch.device:
    """Return the device, if torch can use it.

    Raises:
        ValueError: it cannot.
    """
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"resources.gpus_per_worker: this worker has a GPU ({device}), but torch {torch.__version__} finds none; "
            "install a torch built for CUDA, mend the driver (`cdsweep doctor` looks at both), or set it to 0"
        )
    return place


def source_of(pretrained: str) -> str:
    """Return what diffusers loads for a spec's name: the shipped directory for ``embedded``."""
    return str(EMBEDDED_DIRECTORY) if pretrained == EMBEDDED else pretrained


def _load(name: str, revision: str | None, variant: str | None) -> StableDiffusionPipeline:
    source = source_of(name)
    directory = _directory(source)
    if directory is None and (Path(source).is_absolute() or source.startswith((".", "~"))):
        raise ValueError(f"model.pretrained: there is no directory {source}")
    if directory is not None and (mistake := directory_mistake(directory, variant)):
        raise ValueError(f"model.pretrained: {source} {mistake}")
    try:
        # Weights as safetensors only: pickles run code. The safety checker judges photographs, not samples of a sweep.
        pipeline = StableDiffusionPipeline.from_pretrained(
            source,
            revision=revision,
            variant=variant,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        # Of a hub id the files are here only now.
        held = None if directory is not None else _snapshot(name, revision)
        if held is not None and (mistake := directory_mistake(held, variant)):
            raise ValueError(f"model.pretrained: {name} {mistake}") from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model.pretrained: {name} cannot be loaded as a Stable Diffusion pipeline: {first.rstrip('.')}. "
            "Give 'embedded', a directory in diffusers format with weights in safetensors, or a hub id (downloaded "
            f"once with `hf download {name}`; gated ones need `hf auth login`)"
        ) from error
    return pipeline


def _config(part: Any) -> dict[str, Any]:
    """Return the configuration of a loaded component, with the name of its class."""
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    return {**config, "_class_name": type(part).__name__}


def _directory(source: str) -> Path | None:
    try:
        return Path(source) if Path(source).is_dir() else None
    except OSError:  # longer than a path may be
        return None


def _snapshot(repository: str, revision: str | None) -> Path | None:
    """Return what the hub's cache holds of a repository."""
    try:
        held = try_to_load_from_cache(repository, INDEX, revision=revision)
    except HFValidationError:  # it is no id of one
        return None
    return Path(held).parent if isinstance(held, str) else None
