"""Pipelines in directories of this machine, looked at before anything is started.

What can be seen without torch: whether a directory, its components and all their weights are there, whether they belong
together and to a model that can be sampled, and whether pipelines that are
composed are chains on one noise, with the same latents, noise levels and prediction. Loading says the rest, and all of
those on the hub.
"""

import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.spec.files.hub import class_of, names_of, snapshot_of
from orchestrator.spec.records.constituents import (
    AdapterModel,
    ComposedModel,
    PipelineModel,
    adapter_directory,
)
from orchestrator.spec.text.problems import KeyPath, Problem, dotted, nearest, shown
from trainers.adapters.files import weights_file
from trainers.adapters.header import read_header
from trainers.adapters.layers import fitted, target_problems
from trainers.adapters.reading import AdapterLayer, read_adapter
from trainers.config import SHIPPED, DeployedConfig, LoraConfig, ModelConfig, SamplingConfig
from trainers.pipelines.asking import Configs, deployed_mistakes, mistakes
from trainers.pipelines.configs import FILES, config_mistake, read_config, read_configs
from trainers.pipelines.families import (
    FAMILIES,
    STABLE_DIFFUSION,
    Family,
    family_of,
    left_out,
    unknown_family,
)
from trainers.pipelines.files import directory_mistake, index_of, listed_mistake
from trainers.pipelines.known import known_configs, known_family
from trainers.pipelines.values import value_mistakes

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_EMBEDDED = "trainers.models.embedded"

_UNET, _VAE, _SCHEDULER = FILES["unet"], FILES["vae"], FILES["scheduler"]
_SHARED: dict[str, dict[tuple[str, str], Any]] = {
    "other latents": {
        (_UNET, "in_channels"): 4,
        (_UNET, "sample_size"): None,
        (_VAE, "latent_channels"): 4,
        (_VAE, "scaling_factor"): 0.18215,
    },
    "another scheduler": {
        (_SCHEDULER, "num_train_timesteps"): 1000,
        (_SCHEDULER, "beta_schedule"): "linear",
        (_SCHEDULER, "beta_start"): 0.0001,
        (_SCHEDULER, "beta_end"): 0.02,
        (_SCHEDULER, "trained_betas"): None,
        (_SCHEDULER, "rescale_betas_zero_snr"): False,
    },
    "another prediction type": {(_SCHEDULER, "prediction_type"): "epsilon"},
}
"""What models that are composed must agree in: file, key, and what diffusers takes where the key is left out. Timesteps
are spaced alike in any case."""


def directory_problems(model: ModelConfig) -> list[Problem]:
    """Return what is wrong with the directory that a model names, if it names one; a hub id is left alone."""
    source = model.pretrained
    if source is None:
        return []
    rule = None if source in SHIPPED else _mistake(source, model.revision, model.variant)
    if rule is not None:
        return [Problem(path=("model", "pretrained"), rule=rule, value=source)]
    return [] if model.lora is None else lora_problems(model.lora, source, ("model", "lora"))


def hub_id(source: str) -> str | None:
    """Return a source that is the id of a repository on the hub, or None for a directory and the shipped pipeline."""
    if source in SHIPPED or pipeline_directory(source) is not None or not _HUB_ID.fullmatch(source):
        return None
    return source


def name_problems(source: str, revision: str | None, variant: str | None, path: KeyPath) -> list[Problem]:
    """Return what is wrong with the name of a pipeline in the section at ``path``."""
    if source not in SHIPPED and "/" not in source and (meant := nearest(source, list(SHIPPED))):
        # Hub ids of this family are OWNER/NAME, and a directory can always be written with a slash.
        rule = f"is no hub id (OWNER/NAME); a directory of this name is written ./{source}"
        hint = f"; did you mean {meant!r}?"
        return [Problem(path=(*path, "pretrained"), rule=rule, value=source, hint=hint)]
    if source in SHIPPED and revision is not None:
        rule = "goes with a hub id: the shipped pipeline has no revisions"
        return [Problem(path=(*path, "revision"), rule=rule, value=revision)]
    if source in SHIPPED and variant is not None:
        rule = "goes with a hub id or a directory: the shipped pipeline has no variants"
        return [Problem(path=(*path, "variant"), rule=rule, value=variant)]
    return []


def composed_problems(base: ModelConfig | None, models: Mapping[str, ComposedModel]) -> list[Problem]:
    """Return what is wrong with directories that models name, and what keeps them from being composed."""
    sources: dict[KeyPath, str] = {}
    if base is not None and base.pretrained is not None:
        sources["model", "pretrained"] = base.pretrained
    for name, model in models.items():
        if isinstance(model, PipelineModel):
            sources["models", name, "pretrained"] = model.pretrained
    problems = list(_mismatches(sources))
    told = {problem.path for problem in problems}
    for name, model in models.items():
        path: KeyPath = ("models", name, "pretrained")
        if isinstance(model, PipelineModel) and model.pretrained not in SHIPPED and path not in told:
            rule = _mistake(model.pretrained, model.revision, model.variant)
            if rule is not None:
                at = rule.replace("model.variant", f"models.{name}.variant")
                problems.append(Problem(path=path, rule=at, value=model.pretrained))
    for name, model in models.items():
        if isinstance(model, AdapterModel) and base is not None and base.pretrained is not None:
            rule = _misfit(adapter_directory(model.adapter), base.pretrained)
            path = ("models", name, "adapter")
            problems += [] if rule is None else [Problem(path=path, rule=rule, value=model.adapter)]
    return problems


def _mismatches(sources: Mapping[KeyPath, str]) -> Iterator[Problem]:
    """Yield in what the pipelines of this machine differ from the first of them."""
    places = [
        (path, source, place) for path, source in sources.items() if (place := pipeline_directory(source))
    ]
    for path, source, directory in places[1:]:
        there, other, reference = places[0]
        kind, first = family_named(source), family_named(other)
        if kind != first and kind is not None and first is not None:
            rule = f"is of another family than {dotted(there)} ({kind.name}, {first.name}): they cannot be composed"
            yield Problem(path=path, rule=rule, value=source)
            continue
        for noun, keys in _SHARED.items():
            found = []
            for (file, key), default in keys.items():
                ours, theirs = read_config(directory / file), read_config(reference / file)
                if ours is None or theirs is None:
                    continue
                value, wanted = ours.get(key, default), theirs.get(key, default)
                if value != wanted:
                    found.append(
                        f"{key} {shown(value)} in {source}/{file}, {shown(wanted)} in {other}/{file}"
                    )
            if found:
                rule = f"has {noun} than {dotted(there)}, so they cannot be composed: {'; '.join(found)}"
                yield Problem(path=path, rule=rule, value=source)


def lora_problems(lora: LoraConfig, base: str, path: KeyPath) -> list[Problem]:
    """Return the targets that name no layer of a base, where its files are on this machine and tell.

    Args:
        lora: What is trained.
        base: The pipeline.
        path: Of ``lora`` in the spec.
    """
    shapes = _tensors(base)
    layers = _layers(shapes)
    parts = [name.split(".") for name in shapes]
    modules = {".".join(part[:size]) for part in parts for size in range(1, len(part))}
    return [
        Problem(path=(*path, "targets", number), rule=rule, value=lora.targets[number])
        for number, rule in (target_problems(lora.targets, layers, modules) if layers else ())
    ]


def _misfit(adapter: Path, base: str) -> str | None:
    """Return why an adapter in a directory does not belong to a base."""
    try:
        updates, weights = read_adapter(adapter), weights_file(adapter)
    except (OSError, ValueError):
        return None
    return misfit(updates, f"{adapter.name}/{weights.name}", base)


def misfit(updates: Sequence[AdapterLayer], weights: str, base: str) -> str | None:
    """Return why an adapter does not belong to a base of this machine, as far as files tell.

    Args:
        updates: What the adapter is.
        weights: What its file is called.
        base: The pipeline.
    """
    place = pipeline_directory(base)
    config = None if place is None else read_config(place / _UNET)
    for layer, key in (("attn2", "cross_attention_dim"), ("attn1", "block_out_channels")):
        to_k = re.compile(rf"{layer}[._]to_k$")
        widths = {update.down_shape[1] for update in updates if to_k.search(update.layer)}
        known = None if config is None else config.get(key)
        allowed = known if isinstance(known, list) else [known]
        if known is not None and widths and not all(width in allowed for width in widths):
            found = ", ".join(map(str, sorted(widths)))
            return (
                f"belongs to another base: {layer}.to_k in {weights} is of width {found}, and {key} in "
                f"{base}/{_UNET} is {shown(known)}"
            )
    if layers := _layers(_tensors(base)):
        try:
            fitted(updates, layers)
        except ValueError as error:
            return f"does not fit the base: {error}"
    return None


def _tensors(base: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a network on this machine by name; none where they cannot be told."""
    place = pipeline_directory(base)
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for file in sorted(_network(place).glob("*.safetensors")) if place is not None else ():
            with file.open("rb") as opened:
                shapes |= read_header(opened).shapes
    except (OSError, ValueError):  # loading says what is wrong with it
        return {}
    return shapes


def _network(directory: Path) -> Path:
    """Return the folder of the network that is trained."""
    found = next(
        (directory / family.network for family in FAMILIES if (directory / family.network).is_dir()), None
    )
    return directory / STABLE_DIFFUSION.network if found is None else found


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the weights of linear layers and convolutions by the name of the layer."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) in {2, 4}
    }


def family_named(source: str, revision: str | None = None) -> Family | None:
    """Return the family of a pipeline, as far as files of this machine and its name tell."""
    place = held_directory(source, revision)
    if place is None:
        return known_family(source)
    index = index_of(place)
    return family_of(index.get("_class_name"), index.keys())


def known_pipeline(source: str, revision: str | None = None) -> tuple[Family, Configs] | None:
    """Return the family of a pipeline and the configurations of its components, as far as they are known here.

    Those of its directory, else of the model's name, else none; None where the family is not known either.
    """
    family, place = family_named(source, revision), held_directory(source, revision)
    if family is None:
        return None
    found: Configs = {} if place is None else read_configs(place)
    if not {family.network, "vae", "scheduler"} <= found.keys():
        found = known_configs(source) or found
    return family, found


def lora_targets(source: str, revision: str | None = None) -> tuple[str, ...]:
    """Return what is adapted by default: the attention of a pipeline's family, as far as that is known here."""
    family = family_named(source, revision)
    return LoraConfig().targets if family is None or not family.targets else family.targets


def asking_problems(
    model: ModelConfig, sampling: SamplingConfig, used: DeployedConfig | None
) -> Iterator[Problem]:
    """Yield what is asked of a pipeline that it does not have: size, tokens, guidance, a sampler that will be used.

    Of configurations that hold what they must not, ``directory_problems`` and loading tell.
    """
    assert model.pretrained is not None, "a mixture is asked nothing"
    known = known_pipeline(model.pretrained, model.revision)
    if known is not None and not any(value_mistakes(known[1])):
        for path, rule, value in mistakes(*known, model, sampling):
            yield Problem(path=path, rule=rule, value=value)
        for path, rule, value in () if used is None else deployed_mistakes(*known, model, used):
            yield Problem(path=("evaluation", *path), rule=rule, value=value)


def flows(source: str, revision: str | None = None) -> bool:
    """Whether it is known of a pipeline that its model was trained by flow matching."""
    family = family_named(source, revision)
    return family is not None and family.flow


def parts_left_out(source: str, revision: str | None = None) -> tuple[str, ...]:
    """Return the components that plain diffusers must be told a pipeline does without."""
    place, family = held_directory(source, revision), family_named(source, revision)
    return () if place is None or family is None else left_out(family, index_of(place))


def held_directory(source: str, revision: str | None = None) -> Path | None:
    """Return the directory that a source stands for, of a hub id that of the cache; None for one that is not here."""
    place = pipeline_directory(source)
    if place is None and (repository := hub_id(source)) is not None:
        return snapshot_of(repository, revision)
    return place


def pipeline_directory(source: str) -> Path | None:
    """Return the directory that a source stands for, or None for one that is not here."""
    if source in SHIPPED:
        return Path(str(importlib.resources.files(_EMBEDDED))) / "weights" / SHIPPED[source]
    try:
        return Path(source) if Path(source).is_dir() else None
    except OSError:  # longer than a path may be
        return None


def _mistake(source: str, revision: str | None, variant: str | None) -> str | None:
    """Return the rule that a directory breaks, or None; of a hub id, as far as the hub lists its files."""
    if (repository := hub_id(source)) is not None:
        names, kind = names_of(repository, revision), class_of(repository, revision)
        if kind is not None and family_of(kind, {name.partition("/")[0] for name in names}) is None:
            return unknown_family(kind)
        return listed_mistake(names, variant)
    if source.startswith("~"):
        return "a ~ is not expanded: write the directory in full"
    directory = Path(source)
    try:
        return directory_mistake(directory, variant) or config_mistake(
            family_named(source) or STABLE_DIFFUSION, read_configs(directory)
        )
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        other = "; a hub id is OWNER/NAME" if isinstance(error, FileNotFoundError) else ""
        return f"cannot be read as a directory: {reason}{other}"
