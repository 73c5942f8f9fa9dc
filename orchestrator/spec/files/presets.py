"""What the family of a pipeline gives a spec that leaves things out, and how a plan says so."""

from collections.abc import Iterator
from typing import Any

from orchestrator.spec.files.hub import class_of
from orchestrator.spec.files.pipelines import hub_id, known_pipeline
from trainers.config import PIPELINE_DEFAULTS, SHIPPED, TrainingConfig, TrialConfig
from trainers.pipelines.families import Family, family_of
from trainers.pipelines.presets import Preset, preset_of


def preset_told(model: Any) -> Preset | None:
    """Return the preset of the family of a pipeline, as far as it is known here or the hub tells it.

    Args:
        model: Section of a spec, of any form as it is written. What is shipped has the defaults of any pipeline.
    """
    if not isinstance(model, dict):
        return None
    source, revision = model.get("pretrained"), model.get("revision")
    if not isinstance(source, str) or not isinstance(revision, str | None) or source in SHIPPED:
        return None
    found = _found(source, revision)
    return None if found is None else found[1]


def _found(source: str, revision: str | None) -> tuple[Family, Preset] | None:
    if (known := known_pipeline(source, revision)) is not None:
        return known[0], preset_of(*known, source)
    kind = None if (repository := hub_id(source)) is None else class_of(repository, revision)
    family = None if kind is None else family_of(kind)
    return None if family is None else (family, preset_of(family, {}, source))


def preset_line(config: TrialConfig) -> str | None:
    """Return how a pipeline of a known family is trained, and in what that is not the family's preset."""
    model, training = config.model, config.training
    if model.pretrained is None or model.pretrained in SHIPPED or model.lora is None:
        return None
    if (found := _found(model.pretrained, model.revision)) is None:
        return None
    family, preset = found
    batch = f"{training.batch_per_worker} × {training.accumulation} samples a worker and step"
    apart = ", ".join(_apart(config, preset))
    return (
        f"{family.name}: {config.sampling.words}; {training.precision}, learning rate {training.learning_rate:g}, "
        f"rank {model.lora.rank}, {batch}{', checkpointed' if training.gradient_checkpointing else ''}: the family's "
        f"preset{f', but for {apart}' if apart else ''}"
    )


def _apart(config: TrialConfig, preset: Preset) -> Iterator[str]:
    """Yield the fields in which a trial is not as a preset has it."""
    sections = preset.sections
    sections["sampling"].setdefault("guidance", None)
    for name, fields in sections.items():
        section = config.model.lora if name == "lora" else getattr(config, name)
        before = "model.lora" if name == "lora" else name
        yield from (f"{before}.{key}" for key, value in fields.items() if getattr(section, key) != value)


def presetless_line(config: TrialConfig) -> str | None:
    """Return which defaults of any pipeline a trial has because nothing tells the family of its hub id."""
    source = config.model.pretrained
    if source is None or hub_id(source) is None or _found(source, config.model.revision) is not None:
        return None
    usual = {
        "sampling.steps": (config.sampling.steps, PIPELINE_DEFAULTS["sampling"]["steps"]),
        "training.learning_rate": (config.training.learning_rate, TrainingConfig().learning_rate),
    }
    kept = [f"{key} {ours:g}" for key, (ours, default) in usual.items() if ours == default]
    if not kept:
        return None
    return (
        f"model.pretrained: the family of {source} is not known, because neither the hub nor its cache here tells it, "
        f"so no preset is: {' and '.join(kept)} are the defaults of any pipeline"
    )
