"""How a pipeline is asked besides its prompts: size, negative prompt, tokens and guidance. Free of torch.

The same for training, for what diffusers is told to draw the same, and for the rules that a spec must keep.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainers.config import DeployedConfig, ModelConfig, SamplingConfig
from trainers.pipelines.families import Family

Configs = Mapping[str, Mapping[str, Any]]
"""Of a pipeline's components, by name; of the whole under its index, ``""``."""
Mistake = tuple[tuple[str, str], str, Any]
"""Section and key of a spec, the rule that is broken, and the value."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a pipeline is told with every prompt."""

    size: tuple[int, int]
    """Height and width of images, pixels."""
    negative_prompt: str | None
    free: float | None
    """The scale of classifier-free guidance; None where there is none."""
    told: float | None
    """The guidance that the network is told; None where it is told none."""
    tokens: int | None
    """That are read of a prompt; None where that cannot be told."""
    arguments: Mapping[str, Any]
    """What the pipeline's call takes besides prompts, steps and noise."""


def called(
    form: Family, model: ModelConfig, sampling: SamplingConfig, *, short: bool = False
) -> dict[str, Any]:
    """Return what the call of a pipeline in diffusers takes besides prompts, steps and noise.

    Args:
        form: Of the pipeline.
        model: Section of the spec.
        sampling: Section of the spec.
        short: Whether a text encoder is left out, of which no tokens are read then.
    """
    found: dict[str, Any] = {key: getattr(model, key) for key in model.asked}
    if short:
        found["max_sequence_length"] = 0
    scale = 1.0 if sampling.guidance is None else sampling.guidance
    found[form.scale] = scale - (1.0 if form.beyond else 0.0)
    if sampling.true_guidance is not None:
        found["true_cfg_scale"] = sampling.true_guidance
    if form.empty is not None and sampling.guidance is not None:
        found.setdefault("negative_prompt", form.empty)
    return found


def asked_of(form: Family, configs: Configs, model: ModelConfig, sampling: SamplingConfig) -> Asked:
    """Return how a trial asks its pipeline.

    Args:
        form: Of the pipeline.
        configs: Of its components; without a text encoder that may be left out no tokens of it are read.
        model: Section of the spec.
        sampling: Section of the spec.
    """
    short = bool(form.optional) and not any(part in configs for part in form.optional)
    tokens = model.max_sequence_length or (None if form.tokens is None else form.tokens[0])
    size, told = image_size(form, configs, model), 1.0 if sampling.guidance is None else sampling.guidance
    sized = {"height": size[0], "width": size[1]}
    return Asked(
        size=size,
        negative_prompt=form.empty if model.negative_prompt is None else model.negative_prompt,
        free=sampling.guidance if form.guidance == "free" else sampling.true_guidance,
        told=None if form.guidance == "free" else told,
        tokens=0 if short else tokens,
        arguments=called(form, model, sampling, short=short) | sized,
    )


def image_size(form: Family, configs: Configs, model: ModelConfig) -> tuple[int, int]:
    """Return height and width of images, pixels: what is asked for, else what the network is made for."""
    size, factor = configs[form.network].get("sample_size") or form.side, pixels_each(configs["vae"])
    height, width = (size, size) if isinstance(size, int) else (size or (0, 0))
    return model.height or height * factor, model.width or width * factor


def latent_shape(form: Family, configs: Configs, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return channels, height and width of the latents of images of a size."""
    vae = configs["vae"]
    each, factor = (form.patch if form.patched else 1), pixels_each(vae)
    channels = vae.get("latent_channels", vae.get("z_dim", 4))
    height, width = (pixels // factor // each for pixels in size)
    return int(channels) * each**2, height, width


def pixels_each(vae: Mapping[str, Any]) -> int:
    """Return pixels a side of an image that make one of its latents."""
    halved = vae.get("temperal_downsample")
    return int(2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1 if halved is None else len(halved)))


def mistakes(
    form: Family, configs: Configs, model: ModelConfig, sampling: SamplingConfig
) -> Iterator[Mistake]:
    """Yield what a spec asks of a pipeline that it does not have, as far as its configurations tell."""
    yield from _of_size(form, configs, model)
    yield from _of_tokens(form, model)
    yield from _of_guidance(form, configs, model, sampling)


def deployed_mistakes(
    form: Family, configs: Configs, model: ModelConfig, used: DeployedConfig
) -> Iterator[Mistake]:
    """Yield what the sampler that will be used asks of a pipeline that it does not have."""
    if form.flow and used.sampler != "ode":
        rule = (
            f"must be 'ode' for {form.name}, which is trained by flow matching: its pipeline takes no other"
        )
        yield ("as_deployed", "sampler"), rule, used.sampler
    if form.flow and used.eta > 0:
        rule = f"must be 0 for {form.name}, which is trained by flow matching: its pipeline's steps have no noise"
        yield ("as_deployed", "eta"), rule, used.eta
    for (section, key), rule, value in _of_guidance(form, configs, model, used.asked):
        if section == "sampling":
            yield ("as_deployed", key), rule.replace("sampling.", "evaluation.as_deployed."), value


def _of_size(form: Family, configs: Configs, model: ModelConfig) -> Iterator[Mistake]:
    if not {form.network, "vae"} <= configs.keys():
        return
    network = configs[form.network]
    factor, patch = pixels_each(configs["vae"]), network.get("patch_size", form.patch)
    patch = max(form.patch, patch) if isinstance(patch, int) else form.patch
    most = network.get("pos_embed_max_size")
    for key in ("height", "width"):
        pixels = getattr(model, key)
        if pixels is None:
            continue
        if pixels % (factor * patch):
            patches = "" if patch == 1 else f", {factor} of its autoencoder times {patch} of its patches"
            below = pixels - pixels % (factor * patch)
            near = " or ".join(str(size) for size in (below, below + factor * patch) if size)
            rule = f"must be a multiple of {factor * patch} pixels{patches}: take {near}"
            yield ("model", key), rule, pixels
        elif isinstance(most, int) and pixels > most * factor * patch:
            rule = f"must be at most {most * factor * patch} pixels: the network has {most} places a side"
            yield ("model", key), rule, pixels


def _of_tokens(form: Family, model: ModelConfig) -> Iterator[Mistake]:
    tokens = model.max_sequence_length
    if tokens is not None and form.tokens is None:
        rule = f"goes with families whose pipeline can be told how much of a prompt is read, and {form.name} cannot"
        yield ("model", "max_sequence_length"), rule, tokens
    elif tokens is not None and form.tokens is not None and tokens > form.tokens[1]:
        rule = f"must be at most {form.tokens[1]}, the tokens of a prompt that {form.name} reads"
        yield ("model", "max_sequence_length"), rule, tokens


def _of_guidance(
    form: Family, configs: Configs, model: ModelConfig, sampling: SamplingConfig
) -> Iterator[Mistake]:
    negative, true = model.negative_prompt, sampling.true_guidance
    free = sampling.guidance if form.guidance == "free" else true
    key = "guidance" if form.guidance == "free" else "true_guidance"
    if sampling.guidance is not None and form.guidance != "free" and untold(form, configs):
        rule = "has no effect: this model was distilled to draw in few steps, and is told no guidance; write null"
        yield ("sampling", "guidance"), rule, sampling.guidance
    elif sampling.guidance is not None and configs.get("", {}).get("is_distilled"):
        rule = "has no effect: this model was distilled to draw without guidance (is_distilled); write null"
        yield ("sampling", "guidance"), rule, sampling.guidance
    if true is not None and form.guidance != "both":
        rule = f"goes with models that are told their guidance and take another beside it: {form.name} " + (
            "is guided by sampling.guidance" if form.guidance == "free" else "takes none"
        )
        yield ("sampling", "true_guidance"), rule, true
    elif true is not None and negative is None:
        rule = (
            f"needs model.negative_prompt: {form.name} is distilled to be told its guidance (sampling.guidance), and "
            "true classifier-free guidance beside it is away from a negative prompt"
        )
        yield ("sampling", "true_guidance"), rule, true
    if negative is not None and not form.negative:
        yield (
            ("model", "negative_prompt"),
            f"goes with pipelines that take one, and {form.name} takes none",
            negative,
        )
    elif negative is not None and free is None:
        rule = f"has no effect without guidance away from it: write sampling.{key}, greater than 1"
        yield ("model", "negative_prompt"), rule, negative


def untold(form: Family, configs: Configs) -> bool:
    """Whether it is known of a network that it is told no guidance."""
    return form.network in configs and not configs[form.network].get("guidance_embeds", False)
