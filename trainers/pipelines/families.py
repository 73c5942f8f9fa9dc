"""The families of pipelines that can be trained: what their directories hold, free of torch.

A family is a record here, and a class in ``trainers.models.families`` that asks its network; a line in each registry.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_TRANSFORMERS, _DIFFUSERS = "model", "diffusion_pytorch_model"
"""What files of weights are called, by the library that writes them."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the pipelines of one kind consist of."""

    name: str
    """For messages."""
    pipelines: tuple[str, ...]
    """Classes of diffusers, as ``model_index.json`` names them."""
    network: str
    """Folder of the network that is trained."""
    network_class: str
    """Its class, of diffusers."""
    text_encoders: tuple[str, ...]
    """Folders of the text encoders, each with a tokenizer."""
    optional: tuple[str, ...] = ()
    """Of further text encoders, which a pipeline may leave out."""
    flow: bool = False
    """Whether it is trained by flow matching, not as a diffusion."""
    overflows: bool = False
    """Whether its autoencoder overflows in float16, unless its config has ``force_upcast`` off."""
    autoencoder: str = "AutoencoderKL"
    """Class of the autoencoder, of diffusers."""
    patch: int = 1
    """Latent pixels a side that make one of the network's, where its configuration does not say (``patch_size``)."""
    patched: bool = False
    """Whether noise is drawn in patches: latents of fewer pixels and more channels."""
    side: int | None = None
    """Latent pixels a side by default, where the network's configuration does not say (``sample_size``)."""
    guidance: Literal["free", "told", "both"] = "free"
    """What ``sampling.guidance`` is: the scale of classifier-free guidance; a number that the network is told; or that,
    with classifier-free guidance beside it where ``true_guidance`` and a negative prompt are given."""
    scale: str = "guidance_scale"
    """What the pipeline's call calls that number."""
    beyond: bool = False
    """Whether its call takes the scale less 1, what guidance adds to the prediction with the prompt."""
    negative: bool = True
    """Whether the pipeline takes a negative prompt."""
    empty: str | None = None
    """What its call is given for no negative prompt, without which it would not guide."""
    targets: tuple[str, ...] = ()
    """Endings of the layers of its attention where they are not those of most."""
    tokens: tuple[int, int] | None = None
    """Of a prompt: how many are read by default and at most (``max_sequence_length``), where it can be told."""
    compiles: bool = True
    """Whether its network does the same operations for all texts."""
    kohya: Literal["diffusers", "flux_1", "flux_2"] | None = None
    """Whose names of layers kohya's scripts take (``trainers.adapters.kohya``); None where diffusers reads none of
    theirs."""
    undone: tuple[str, ...] = ()
    """Components that the pipeline does without, as plain diffusers must be told."""

    @property
    def weighted(self) -> tuple[str, ...]:
        """The components with weights."""
        return (*self.text_encoders, self.network, "vae")

    @property
    def components(self) -> tuple[str, ...]:
        """Folders that training needs."""
        return (*map(tokenizer_of, self.text_encoders), *self.weighted, "scheduler")

    @property
    def configs(self) -> dict[str, str]:
        """Where the configuration of each component is."""
        return {part: f"{part}/config.json" for part in (*self.weighted, *self.optional)} | {
            "scheduler": "scheduler/scheduler_config.json"
        }


def left_out(family: Family, index: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the text encoders that a pipeline's index leaves out, each with its tokenizer."""
    there = [
        part for part in family.optional if isinstance(given := index.get(part), list | tuple) and given[0]
    ]
    absent = [part for part in family.optional if part not in there]
    return (*absent, *map(tokenizer_of, absent))


def stem_of(component: str) -> str:
    """Return what the files of a component's weights are called."""
    return _TRANSFORMERS if component.startswith("text_encoder") else _DIFFUSERS


def tokenizer_of(encoder: str) -> str:
    """Return the folder of a text encoder's tokenizer."""
    return encoder.replace("text_encoder", "tokenizer")


STABLE_DIFFUSION = Family(
    name="SD 1.x, 2.x",
    pipelines=("StableDiffusionPipeline",),
    network="unet",
    network_class="UNet2DConditionModel",
    text_encoders=("text_encoder",),
    undone=("safety_checker",),
    kohya="diffusers",
)
STABLE_DIFFUSION_XL = Family(
    name="SDXL",
    pipelines=("StableDiffusionXLPipeline",),
    network="unet",
    network_class="UNet2DConditionModel",
    text_encoders=("text_encoder", "text_encoder_2"),
    overflows=True,
    kohya="diffusers",
)
STABLE_DIFFUSION_3 = Family(
    name="SD 3",
    pipelines=("StableDiffusion3Pipeline",),
    network="transformer",
    network_class="SD3Transformer2DModel",
    text_encoders=("text_encoder", "text_encoder_2"),
    optional=("text_encoder_3",),
    flow=True,
    patch=2,
    tokens=(256, 512),
)
FLUX_1 = Family(
    name="FLUX.1",
    pipelines=("FluxPipeline",),
    network="transformer",
    network_class="FluxTransformer2DModel",
    text_encoders=("text_encoder", "text_encoder_2"),
    flow=True,
    patch=2,
    side=128,
    guidance="both",
    tokens=(512, 512),
    kohya="flux_1",
)
Z_IMAGE = Family(
    name="Z-Image",
    pipelines=("ZImagePipeline",),
    network="transformer",
    network_class="ZImageTransformer2DModel",
    text_encoders=("text_encoder",),
    flow=True,
    patch=2,
    side=128,
    beyond=True,
    tokens=(512, 512),
    compiles=False,
    kohya="diffusers",
)
_FLUX_2: dict[str, Any] = {
    "network": "transformer",
    "network_class": "Flux2Transformer2DModel",
    "text_encoders": ("text_encoder",),
    "flow": True,
    "autoencoder": "AutoencoderKLFlux2",
    "patch": 2,
    "patched": True,
    "side": 128,
    "negative": False,
    "kohya": "flux_2",
    "tokens": (512, 512),
    "targets": ("to_q", "to_k", "to_v", "attn.to_out", "to_out.0", "to_qkv_mlp_proj"),
}
FLUX_2 = Family(name="FLUX.2", pipelines=("Flux2Pipeline",), guidance="told", **_FLUX_2)
FLUX_2_KLEIN = Family(name="FLUX.2 klein", pipelines=("Flux2KleinPipeline",), **_FLUX_2)
QWEN_IMAGE = Family(
    name="Qwen-Image",
    pipelines=("QwenImagePipeline",),
    network="transformer",
    network_class="QwenImageTransformer2DModel",
    text_encoders=("text_encoder",),
    flow=True,
    autoencoder="AutoencoderKLQwenImage",
    patch=2,
    side=128,
    scale="true_cfg_scale",
    empty=" ",
    tokens=(512, 1024),
    kohya="diffusers",
)
FAMILIES = (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    STABLE_DIFFUSION_3,
    FLUX_1,
    Z_IMAGE,
    FLUX_2,
    FLUX_2_KLEIN,
    QWEN_IMAGE,
)

_REFINERS = "StableDiffusionXLImg2ImgPipeline"


def family_of(pipeline: str | None, folders: Collection[str] = ()) -> Family | None:
    """Return the family of a pipeline; None for one that no family has.

    Args:
        pipeline: Its class, if it is known.
        folders: What it consists of, which tells where the class does not: one of an unknown class with a UNet is
            looked at as Stable Diffusion, whose rules say in what it differs.
    """
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
    if pipeline == _REFINERS:
        return None
    if "unet" in folders or (pipeline is None and "transformer" not in folders):
        return STABLE_DIFFUSION
    return STABLE_DIFFUSION_3 if pipeline is None else None


def kohya_refusal(family: Family | None) -> str | None:
    """Return why kohya's format has no names for the layers of a family, or None where it has."""
    if family is not None and family.kohya is not None:
        return None
    whose = "a family that is not known here" if family is None else family.name
    known = ", ".join(known.name for known in FAMILIES if known.kohya is not None)
    return (
        f"kohya's format has names for the layers of {known}, and none that diffusers reads for those of {whose}: take "
        "--format diffusers, which ComfyUI reads too"
    )


def unknown_family(pipeline: str) -> str:
    """Return what is wrong with a pipeline of no known family."""
    if pipeline == _REFINERS:
        return (
            f"is a {pipeline}, as refiners are: it improves images and draws none; give the base that it goes with "
            f"({STABLE_DIFFUSION_XL.pipelines[0]})"
        )
    known = "; ".join(f"{family.name} ({', '.join(family.pipelines)})" for family in FAMILIES)
    return (
        f"is a {pipeline}, of no family that is known; known: {known}; docs/pipelines.md says how to add one"
    )
