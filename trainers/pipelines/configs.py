"""What the configurations of a pipeline's components must say, for it to be sampled as one of its family.

The same rules for files that are looked at before anything starts, and for what has been loaded.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.pipelines.families import (
    FLUX_1,
    FLUX_2,
    FLUX_2_KLEIN,
    QWEN_IMAGE,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_3,
    STABLE_DIFFUSION_XL,
    Z_IMAGE,
    Family,
)
from trainers.pipelines.values import value_mistakes

Config = Mapping[str, Any]

SCHEDULER = "scheduler/scheduler_config.json"
FILES = {**STABLE_DIFFUSION_3.configs, **STABLE_DIFFUSION.configs, "": "model_index.json"}
"""Where the configuration of each component of any family is, and that of the whole."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a network may predict."""

_UNET = STABLE_DIFFUSION.network_class
_FLOW = "FlowMatchEulerDiscreteScheduler"
_OTHER_SIGMAS = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
)
_CONDITIONS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim")
_OTHER_QWEN = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
_SPACINGS = ("leading", "linspace", "trailing")
_COSINE = "squaredcos_cap_v2"
_BETAS = ("linear", "scaled_linear", _COSINE)
"""The schedules of noise levels that DDIM of diffusers has."""
_DIFFUSIONS = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM",
        "DDIMParallel",
        "DDPM",
        "DDPMParallel",
        "DEISMultistep",
        "DPMSolverMultistep",
        "DPMSolverSDE",
        "DPMSolverSinglestep",
        "EulerAncestralDiscrete",
        "EulerDiscrete",
        "HeunDiscrete",
        "KDPM2AncestralDiscrete",
        "KDPM2Discrete",
        "LCM",
        "LMSDiscrete",
        "PNDM",
        "SASolver",
        "TCD",
        "UniPCMultistep",
    )
)
"""Schedulers whose noise levels are those of DDIM with the same betas."""


def config_mistake(family: Family, configs: Mapping[str, Config]) -> str | None:
    """Return the first rule that the configurations of components break, or None.

    Args:
        family: Of the pipeline.
        configs: By component; what is left out is not looked at.
    """
    rules = (value_mistakes, *_RULES[family])
    return next(itertools.chain.from_iterable(rule(configs) for rule in rules), None)


def read_configs(directory: Path) -> dict[str, Config]:
    """Return the configurations in a directory, those left out that cannot be read."""
    found = {component: read_config(directory / file) for component, file in FILES.items()}
    return {component: config for component, config in found.items() if config is not None}


def read_config(file: Path) -> dict[str, Any] | None:
    """Return one configuration, or None where it cannot be read."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _of_unet(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what keeps a UNet from being asked as that of Stable Diffusion 1.x, in one sentence."""
    if found := list(_family(configs.get("unet", {}), configs.get("vae", {}))):
        yield f"is not of the {STABLE_DIFFUSION.name} family: {'; '.join(found)}"


def _family(unet: Config, vae: Config) -> Iterator[str]:
    name = unet.get("_class_name", _UNET)
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if name != _UNET:
        yield f"its unet is a {name}, not a {_UNET}"
    elif channels != latents:
        yield (
            f"its unet takes {channels} channels and its vae has {latents} (an inpainting or depth model?)"
        )
    elif any(unet.get(key) for key in _CONDITIONS):
        yield "its unet wants conditions besides the prompt (an SDXL, upscaling or LCM model?)"
    elif unet and not unet.get("sample_size"):
        yield "its unet's config has no sample_size"


def _of_xl(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what keeps a UNet from being asked as that of SDXL, with a pooled text and six numbers of sizes."""
    unet, vae = configs.get("unet", {}), configs.get("vae", {})
    if not unet:
        return
    name, sizes = unet.get("_class_name", _UNET), unet.get("addition_time_embed_dim") or 0
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if name != _UNET:
        yield f"is not of the SDXL family: its unet is a {name}, not a {_UNET}"
    if unet.get("addition_embed_type") != "text_time":
        yield "is not of the SDXL family: its unet takes no sizes (addition_embed_type is not 'text_time')"
    if channels != latents:
        yield f"has a unet that takes {channels} channels, and its vae has {latents} (an inpainting model?)"
    if other := [key for key in _CONDITIONS if key != "addition_embed_type" and unet.get(key)]:
        yield f"has a unet that wants further conditions ({', '.join(other)}; an LCM model?)"
    if not unet.get("sample_size"):
        yield "has a unet whose config has no sample_size"
    texts = [configs.get(part, {}) for part in STABLE_DIFFUSION_XL.text_encoders]
    widths = [size for text in texts if isinstance(size := text.get("hidden_size"), int)]
    wanted = unet.get("cross_attention_dim")
    if len(widths) == len(texts) and isinstance(wanted, int) and sum(widths) != wanted:
        yield (
            f"has text encoders of width {widths[0]} and {widths[1]} (hidden_size), and its unet takes width {wanted} "
            "(cross_attention_dim): they belong to different models"
        )
    pooled, taken = texts[1].get("projection_dim"), unet.get("projection_class_embeddings_input_dim")
    if isinstance(pooled, int) and isinstance(taken, int) and pooled + 6 * sizes != taken:
        kind = (
            "a refiner, which improves images and draws none"
            if pooled + 5 * sizes == taken
            else "another model's"
        )
        yield (
            f"has a unet for {taken} numbers besides the prompt (projection_class_embeddings_input_dim), not "
            f"{pooled + 6 * sizes} of pooled text and six sizes: {kind}"
        )


def _of_transformer(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what keeps a transformer from being sampled as Stable Diffusion 3."""
    yield from _of_network(STABLE_DIFFUSION_3, configs, each=1)
    network = configs.get("transformer", {})
    size, patch = network.get("sample_size", 128), network.get("patch_size", 2)
    if isinstance(size, int) and isinstance(patch, int) and patch and size % patch:
        yield f"has a transformer for latents of {size} pixels a side, which its patches of {patch} do not divide"
    width, texts = network.get("joint_attention_dim", 4096), ("text_encoder", "text_encoder_2")
    found = [size for part in texts if isinstance(size := configs.get(part, {}).get("hidden_size"), int)]
    if len(found) == len(texts) and sum(found) > width:
        yield (
            f"has text encoders of width {found[0]} and {found[1]} (hidden_size), side by side wider than the "
            f"{width} that its transformer takes (joint_attention_dim): they belong to different models"
        )
    yield from _of_times(configs)


def _of_flux(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what keeps a transformer from being sampled as FLUX.1."""
    yield from _of_network(FLUX_1, configs, each=4)
    yield from _of_text(configs, "text_encoder_2", "joint_attention_dim")
    yield from _of_text(configs, "text_encoder", "pooled_projection_dim")
    yield from _of_times(configs, "use_dynamic_shifting")


def _of_z_image(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what keeps a transformer from being sampled as Z-Image."""
    network = configs.get("transformer", {})
    yield from _of_network(Z_IMAGE, configs, each=1)
    if (patches := list(network.get("all_patch_size", (2,)))) != [2]:
        yield f"has a transformer with patches of {', '.join(map(str, patches))}, not of 2"
    if network.get("siglip_feat_dim") is not None:
        yield "has a transformer that wants images besides the prompt (siglip_feat_dim; an Omni model?)"
    yield from _of_text(configs, "text_encoder", "cap_feat_dim")
    yield from _of_times(configs, "use_dynamic_shifting")


def _of_flux_2(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what keeps a transformer from being sampled as FLUX.2, of which klein has another text encoder."""
    yield from _of_network(FLUX_2, configs, each=4)
    yield from _of_text(configs, "text_encoder", "joint_attention_dim", each=3)
    yield from _of_times(configs, "use_dynamic_shifting")


def _of_qwen(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what keeps a transformer from being sampled as Qwen-Image."""
    yield from _of_network(QWEN_IMAGE, configs, each=4)
    network = configs.get("transformer", {})
    if other := [key for key in _OTHER_QWEN if network.get(key)]:
        yield f"has a transformer that wants conditions besides the prompt ({', '.join(other)}; to edit images?)"
    yield from _of_text(configs, "text_encoder", "joint_attention_dim")
    yield from _of_times(configs, "use_dynamic_shifting", "shift_terminal")


def _of_network(family: Family, configs: Mapping[str, Config], *, each: int) -> Iterator[str]:
    """Yield in what a transformer and an autoencoder are not those of a family.

    Args:
        family: Of the pipeline.
        configs: Of its components.
        each: Latent pixels in an entry of what the transformer takes.
    """
    network, vae = configs.get(family.network, {}), configs.get("vae", {})
    name, kind = network.get("_class_name", family.network_class), vae.get("_class_name", family.autoencoder)
    if name != family.network_class:
        yield f"is not of the {family.name} family: its transformer is a {name}, not a {family.network_class}"
    if kind != family.autoencoder:
        yield f"is not of the {family.name} family: its vae is a {kind}, not a {family.autoencoder}"
    latents = vae.get("latent_channels", vae.get("z_dim", 16))
    channels = network.get("in_channels", 16 * each)
    if network and vae and channels != latents * each:
        patches = "" if each == 1 else f" (patches of {each} make {latents * each})"
        yield f"has a transformer that takes {channels} channels, and its vae has {latents}{patches}"
    if vae and vae.get("shift_factor") is None and family.autoencoder == STABLE_DIFFUSION_3.autoencoder:
        yield "has a vae without shift_factor in its config, which this kind of pipeline adds to latents: write 0.0"


def _of_text(configs: Mapping[str, Config], encoder: str, key: str, each: int = 1) -> Iterator[str]:
    """Yield whether a text encoder is narrower or wider than the transformer takes."""
    config, wanted = configs.get(encoder, {}), configs.get("transformer", {}).get(key)
    found = config.get("hidden_size", config.get("d_model"))
    if isinstance(wanted, int) and isinstance(found, int) and found * each != wanted:
        yield (
            f"has a {encoder} of width {found}, and its transformer takes width {wanted} ({key}): they belong to "
            "different models"
        )


def _of_times(configs: Mapping[str, Config], *allowed: str) -> Iterator[str]:
    """Yield what keeps a scheduler's levels from being even ones that are shifted once."""
    scheduler = configs.get("scheduler", {})
    flow = scheduler.get("_class_name", _FLOW)
    if flow != _FLOW:
        yield f"has a {flow}, and a model trained by flow matching is sampled with the levels of a {_FLOW}"
    if other := [key for key in _OTHER_SIGMAS if scheduler.get(key) and key not in allowed]:
        yield f"has a scheduler with {', '.join(other)} ({SCHEDULER}): levels are even, and moved by its shift alone"


def _widths(configs: Mapping[str, Config]) -> Iterator[str]:
    unet, encoder = configs.get("unet", {}), configs.get("text_encoder", {})
    wanted = unet.get("encoder_hid_dim") or unet.get("cross_attention_dim")
    found = encoder.get("hidden_size")
    if isinstance(wanted, int) and isinstance(found, int) and wanted != found:
        yield (
            f"has a text_encoder of width {found} (hidden_size), and its unet takes width {wanted} "
            "(cross_attention_dim): they belong to different models"
        )


def _levels(configs: Mapping[str, Config]) -> Iterator[str]:
    scheduler = configs.get("scheduler", {})
    name = str(scheduler.get("_class_name", "DDIMScheduler"))
    prediction = scheduler.get("prediction_type", "epsilon")
    flow = "Flow" in name or name.endswith("RFScheduler") or scheduler.get("use_flow_sigmas")
    if flow or prediction == "flow_prediction":
        why = ": use_flow_sigmas" if scheduler.get("use_flow_sigmas") else ""
        if prediction == "flow_prediction":
            why = f": its prediction_type is 'flow_prediction'; known: {', '.join(PREDICTIONS)}"
        yield (
            f"is trained by flow matching (its scheduler is a {name}{why}), which has no noise levels of a diffusion "
            "and cannot be sampled here"
        )
    elif name not in _DIFFUSIONS:
        yield (
            f"has a {name}, whose noise levels DDIM cannot use; known: "
            f"{', '.join(sorted(known.removesuffix('Scheduler') for known in _DIFFUSIONS))}"
        )
    elif prediction not in PREDICTIONS:
        yield f"has a scheduler whose prediction_type is {prediction!r}; known: {', '.join(PREDICTIONS)}"
    yield from _noise(scheduler)
    if scheduler.get("rescale_betas_zero_snr") and prediction == "epsilon":
        yield (
            "has a scheduler with rescale_betas_zero_snr and prediction_type 'epsilon': at a level without signal the "
            "noise says nothing of the image; such models predict 'v_prediction' or 'sample'"
        )
    if scheduler.get("timestep_type", "discrete") != "discrete":
        yield (
            f"has a scheduler whose timestep_type is {scheduler['timestep_type']!r}: its network is told noise levels "
            "in place of timesteps, which DDIM does not know"
        )
    spacing = scheduler.get("timestep_spacing", "leading")
    if spacing not in _SPACINGS:
        yield f"has a scheduler whose timestep_spacing is {spacing!r}; known: {', '.join(_SPACINGS)}"


def _noise(scheduler: Config) -> Iterator[str]:
    """Yield what is wrong with the noise that the levels add, the betas."""
    schedule, written = scheduler.get("beta_schedule", "linear"), scheduler.get("trained_betas")
    levels = scheduler.get("num_train_timesteps", 1000)
    if written is not None and len(written) != levels:
        yield (
            f"has a scheduler with {len(written)} trained_betas and num_train_timesteps {levels} ({SCHEDULER}): every "
            "level has one"
        )
    elif written is None and schedule not in _BETAS:
        yield (
            f"has a scheduler whose beta_schedule is {schedule!r} ({SCHEDULER}), which DDIM does not have; known: "
            f"{', '.join(_BETAS)}, or trained_betas written out"
        )
    elif written is not None or schedule != _COSINE:
        ends = {"beta_start": 0.0001, "beta_end": 0.02}
        betas = {key: scheduler.get(key, default) for key, default in ends.items()}
        if written is not None:
            betas = {f"trained_betas.{level}": beta for level, beta in enumerate(written)}
        for key, beta in betas.items():
            if not 0 < beta < 1:
                yield f"has a scheduler whose {key} is {beta!r} ({SCHEDULER}): every level adds noise, between 0 and 1"
                return


_RULES: Mapping[Family, tuple[Callable[[Mapping[str, Config]], Iterator[str]], ...]] = {
    STABLE_DIFFUSION: (_of_unet, _widths, _levels),
    STABLE_DIFFUSION_XL: (_of_xl, _levels),
    STABLE_DIFFUSION_3: (_of_transformer,),
    FLUX_1: (_of_flux,),
    Z_IMAGE: (_of_z_image,),
    FLUX_2: (_of_flux_2,),
    FLUX_2_KLEIN: (_of_flux_2,),
    QWEN_IMAGE: (_of_qwen,),
}
"""What the configurations of each family must say, in the order in which it is looked at."""
