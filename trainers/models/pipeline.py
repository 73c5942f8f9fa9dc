"""Loading a pipeline of a known family: any diffusers directory or hub id, or a shipped one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from torch import Tensor

from trainers.config import EMBEDDED, SHIPPED, ModelConfig, SamplingConfig
from trainers.models.families.base import NetworkFamily
from trainers.models.families.registry import family_with
from trainers.models.layers.quantised import quantise
from trainers.models.texts import TextEncoders, Texts
from trainers.pipelines.asking import Asked, Configs, asked_of, image_size, latent_shape, mistakes
from trainers.pipelines.configs import config_mistake
from trainers.pipelines.families import Family, family_of, unknown_family
from trainers.pipelines.files import INDEX, directory_mistake, index_of

_WEIGHTS = Path(__file__).parent / "embedded" / "weights"
EMBEDDED_DIRECTORY = _WEIGHTS / SHIPPED[EMBEDDED]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What training needs of a pipeline."""

    family: NetworkFamily
    pipeline: Any
    """The whole, for the configuration of its scheduler."""
    texts: Texts
    """Its text side."""
    network: Any
    """The one that denoises, which adapters are for."""
    vae: Any
    device: torch.device
    dtype: torch.dtype
    """Of the frozen weights; an autoencoder that would overflow is in float32."""
    model: ModelConfig
    """What it was loaded by."""
    configs: Configs
    """Of its components."""
    offload: bool = False
    """Whether the autoencoder lies in main memory, and its tensors are on the device only while they are needed."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of images, pixels."""
        return image_size(self.family.form, self.configs, self.model)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        return latent_shape(self.family.form, self.configs, self.image_size)

    def asked(self, sampling: SamplingConfig) -> Asked:
        """Return what the pipeline is told with every prompt."""
        return asked_of(self.family.form, self.configs, self.model, sampling)

    def check(self, sampling: SamplingConfig) -> None:
        """Check that the pipeline has what is asked of it.

        Raises:
            ValueError: It does not; says where.
        """
        for place, rule, value in mistakes(self.family.form, self.configs, self.model, sampling):
            raise ValueError(f"{'.'.join(place)} {rule}, got {value!r}")

    def decode(self, latents: Tensor) -> Tensor:
        """Return images ``[batch, 3, h, w]`` in [0, 1], with gradients, by an autoencoder on the device."""
        return in_range(self.family, self.vae, latents)


def in_range(family: NetworkFamily, vae: Any, latents: Tensor) -> Tensor:
    """Return what an autoencoder makes of latents: images ``[batch, 3, h, w]`` in [0, 1], with gradients."""
    images = family.decoded(vae, family.unscaled(vae, latents).to(vae.dtype))
    return (images.float() / 2 + 0.5).clamp(0.0, 1.0)


def load_parts(
    model: ModelConfig, precision: str, device: str = "cpu", *, split: bool = False, offload: bool = False
) -> Parts:
    """Load a pipeline, frozen, onto a device: the caller knows which it was given, whatever else is visible.

    Args:
        model: Which.
        precision: Of its weights.
        device: Of what computes.
        split: Leave the network in plain memory, plainly laid out: it will be split among workers.
        offload: Leave the autoencoder in main memory.

    Raises:
        ValueError: it is no pipeline, lacks a component, is of no known family, torch does not see the device, or what
            quantises it is not installed; says what to do.
    """
    assert model.pretrained is not None
    place = _usable(device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    pipeline, family = _load(model.pretrained, model.revision, model.variant)
    form = family.form
    configs = {part: _config(each) for part in form.configs if (each := getattr(pipeline, part))}
    configs[""] = _config(pipeline)
    if mistake := config_mistake(form, configs):
        raise ValueError(f"model.pretrained: {model.pretrained} {mistake}")
    for name in (*form.weighted, *form.optional):
        if (part := getattr(pipeline, name)) is not None:
            part.requires_grad_(requires_grad=False).eval()
    network = getattr(pipeline, form.network)
    if model.quantise is not None:
        quantise(network, place, dtype)
    return Parts(
        family=family,
        pipeline=pipeline,
        texts=TextEncoders(family, pipeline, dtype, lambda: _text_side(family, model)),
        network=network.to(dtype=dtype)
        if split
        else network.to(place, dtype, memory_format=torch.channels_last),
        vae=laid_out(
            pipeline.vae.to("cpu" if offload else place, decoder_type(form, pipeline.vae.config, dtype))
        ),
        offload=offload,
        device=place,
        dtype=dtype,
        model=model,
        configs=configs,
    )


def _text_side(family: NetworkFamily, model: ModelConfig) -> Any:
    """Return a pipeline without its other networks."""
    assert model.pretrained is not None
    others = {family.form.network: None, "vae": None}
    return family.load(
        source_of(model.pretrained),
        revision=model.revision,
        variant=model.variant,
        use_safetensors=True,
        **others,
    )


def laid_out(vae: Any) -> Any:
    """Return an autoencoder with the layout of weights that convolutions of images are fastest in."""
    flat = all(parameter.ndim <= _IMAGES for parameter in vae.parameters())
    return vae.to(memory_format=torch.channels_last) if flat else vae


_IMAGES = 4
"""Dimensions of a convolution's weights; those of videos have one more."""


def decoder_type(form: Family, config: Any, dtype: torch.dtype) -> torch.dtype:
    """Return the precision of an autoencoder, where the other networks have one."""
    overflows = form.overflows and dtype == torch.float16 and config.get("force_upcast", True)
    return torch.float32 if overflows else dtype


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
    return str(_WEIGHTS / SHIPPED[pretrained]) if pretrained in SHIPPED else pretrained


def _load(name: str, revision: str | None, variant: str | None) -> tuple[Any, NetworkFamily]:
    source = source_of(name)
    directory = _directory(source)
    if directory is None and (Path(source).is_absolute() or source.startswith((".", "~"))):
        raise ValueError(f"model.pretrained: there is no directory {source}")
    if directory is not None and (mistake := directory_mistake(directory, variant)):
        raise ValueError(f"model.pretrained: {source} {mistake}")
    if are_progress_bars_disabled():
        disable_progress_bar()  # diffusers draws its own
    try:
        family = _family(source, revision, directory)
        # Weights as safetensors only: pickles run code.
        pipeline = family.load(source, revision=revision, variant=variant, use_safetensors=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        # Of a hub id the files are here only now.
        held = None if directory is not None else _snapshot(name, revision)
        if held is not None and (mistake := directory_mistake(held, variant)):
            raise ValueError(f"model.pretrained: {name} {mistake}") from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model.pretrained: {name} cannot be loaded as a Stable Diffusion pipeline: {first.rstrip('.')}. "
            f"Give {EMBEDDED!r}, a directory in diffusers format with weights in safetensors, or a hub id (downloaded "
            f"once with `hf download {name}`; gated ones need `hf auth login`)"
        ) from error
    return pipeline, family


def _family(source: str, revision: str | None, directory: Path | None) -> NetworkFamily:
    """Return the family that a pipeline's index says it is of.

    Raises:
        ValueError: it is of none that is known.
        OSError: the hub does not answer.
    """
    index = (
        DiffusionPipeline.load_config(source, revision=revision) if directory is None else index_of(directory)
    )
    kind = index.get("_class_name")
    form = family_of(kind, index.keys())
    if form is None:
        raise ValueError(f"it {unknown_family(str(kind))}")
    return family_with(form)


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
