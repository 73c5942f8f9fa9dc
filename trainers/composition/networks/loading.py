"""Loading the networks of a composition: every pipeline once, its adapters on it, and all on one chain."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainers.adapters.digest import adapter_digest
from trainers.config import (
    BaseConfig,
    CompositionConfig,
    ConstituentConfig,
    ModelConfig,
    SamplingConfig,
)
from trainers.models.denoiser import Denoiser
from trainers.models.embedded.adapters import adapter_directory
from trainers.models.layers.frozen_lora import FrozenAdapters
from trainers.models.pipeline import load_parts, source_of

_BASE = "the base"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A pipeline, and the adapters on its UNet."""

    name: str
    """For messages: of the first model that uses it."""
    denoiser: Denoiser
    adapters: FrozenAdapters


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What the models of a composition are made of."""

    each: tuple[Network, ...]
    """Pipelines; the first is the base, or the first model where there is none."""
    places: tuple[int, ...]
    """Number of every model's pipeline, ``[m]``."""
    based: bool
    """Whether the first is a base."""


def load_networks(
    composition: CompositionConfig, sampling: SamplingConfig, precision: str, device: str = "cpu"
) -> Networks:
    """Load the pipelines and the adapters onto a device.

    Raises:
        ValueError: one of them cannot be used, or they have no chain in common; names the models and says why.
    """
    # Models are asked one by one, so what is rounded differs between them, and would be measured as a KL.
    torch.backends.cudnn.allow_tf32 = False
    base = composition.base
    if base is None and any(model.pretrained is None for model in composition.models):
        base = BaseConfig()
    loaded: dict[tuple[str, str | None, str | None], Network] = {}

    def number_of(name: str, part: BaseConfig | ConstituentConfig) -> int:
        assert part.pretrained is not None, "a pipeline"
        key = (source_of(part.pretrained), part.revision, part.variant)
        if key not in loaded:
            model = ModelConfig(pretrained=part.pretrained, revision=part.revision, variant=part.variant)
            loaded[key] = _load(name, model, sampling, precision, device)
        return list(loaded).index(key)

    if base is not None:
        number_of(_BASE, base)
    places = [0 if model.pretrained is None else number_of(model.name, model) for model in composition.models]
    networks = tuple(loaded.values())
    _check(networks)
    for model in composition.models:
        if model.adapter is not None:
            try:
                directory = adapter_directory(model.adapter)
                _check_digest(directory, model.digest)
                networks[0].adapters.add(model.name, directory)
            except ValueError as error:
                raise ValueError(f"models.{model.name}.adapter: {error}") from error
    return Networks(each=networks, places=tuple(places), based=base is not None)


def _load(name: str, model: ModelConfig, sampling: SamplingConfig, precision: str, device: str) -> Network:
    try:
        parts = load_parts(model, precision, device)
        denoiser = Denoiser(parts, sampling)
    except ValueError as error:
        if name == _BASE:
            raise
        place = f"models.{name}"
        said = str(error)
        keys = re.sub(r"\bmodel\.(?=pretrained|revision|variant)", f"{place}.", said)
        where = keys if said.startswith("model.") else f"{place}: {said}"
        raise ValueError(where) from error
    return Network(name=name, denoiser=denoiser, adapters=FrozenAdapters(parts.network))


def _check_digest(directory: Path, digest: str | None) -> None:
    """Refuse weights other than those that were planned with.

    Raises:
        ValueError: there are none, or others; with both digests.
    """
    if digest is None:
        return
    try:
        found = adapter_digest(directory)
    except ValueError as error:
        raise ValueError(f"{directory} has no adapter: {error}") from error
    if found != digest:
        raise ValueError(
            f"{directory} has changed since the sweep was planned: its SHA-256 is {found[:12]}…, not {digest[:12]}…"
        )


def _check(networks: Sequence[Network]) -> None:
    """Refuse pipelines that do not step from the same latents through the same noise, or without any.

    Raises:
        ValueError: with both models and both values.
    """
    first = networks[0]
    if first.denoiser.parts.family.form.flow:
        raise ValueError(
            f"models: {first.name} is trained by flow matching, whose last step has no noise: it cannot be composed"
        )
    for other in networks[1:]:
        ours, theirs = _traits(first.denoiser), _traits(other.denoiser)
        apart = [trait for trait in ours if ours[trait] != theirs[trait]]
        if apart:
            trait = apart[0]
            raise ValueError(
                f"models: {first.name} and {other.name} cannot be composed, because they have no chain in common: "
                f"{trait} {ours[trait]} and {theirs[trait]}"
            )


def _traits(denoiser: Denoiser) -> dict[str, str]:
    """Return what chains must agree in, as text."""
    return {
        "latents": "×".join(map(str, denoiser.parts.latent_shape)),
        "scale of latents": f"{denoiser.parts.vae.config.scaling_factor:g}",
        "prediction type": denoiser.prediction,
        "timesteps": ", ".join(map(str, denoiser.timesteps)),
        "noise levels ᾱ": ", ".join(f"{level:.5g}" for level in denoiser.table.levels.alpha[:-1] ** 2),
    }
