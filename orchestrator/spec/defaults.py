"""Defaults that depend on the kind of model, filled into the data of a spec before it is validated.

Those of a mixture are the fields' own. What has not the form of a section is left as it is, so that the
error is about what was written.
"""

from typing import Any

from orchestrator.spec.records.constituents import form_of
from orchestrator.spec.records.samplers import default_sampler
from trainers.config import (
    COMPOSITION_DEFAULTS,
    EMBEDDED,
    NETWORK_COMPOSITION_DEFAULTS,
    PIPELINE_DEFAULTS,
    SECOND_ORDER,
    SHIPPED,
    TrialConfig,
)
from trainers.pipelines.presets import Preset

EMBEDDED_PROMPTS = {"train": "shapes", "evaluate": "shapes-held-out"}
"""What the shipped pipelines can draw."""
_RESTING = {"rest": PIPELINE_DEFAULTS["sampling"]["rest"]}
"""Of adapters and prompts, which are the same pipeline."""


def with_defaults(data: dict[str, Any], preset: Preset | None = None) -> dict[str, Any]:
    """Return the data of a spec with the keys that a pipeline or a composition has other defaults for.

    Args:
        data: As it is written.
        preset: Of the family of its pipeline, in place of the defaults of any.
    """
    model = data.get("model")
    filled = dict(data)
    if "models" in data:
        sections, base = _composition_defaults(data)
        # Required of every other spec. A model of null is one that is left out.
        filled = {"constraints": []} | filled | {"model": base if model is None else model}
    elif isinstance(model, dict) and "pretrained" in model:
        sections = dict(PIPELINE_DEFAULTS)
        if model["pretrained"] in list(SHIPPED):  # a list, as what is written may be of any type
            sections["prompts"] = EMBEDDED_PROMPTS
        if preset is not None:
            lora, of_family = _preset_of(preset, data)
            sections |= {name: sections.get(name, {}) | fields for name, fields in of_family.items()}
            if isinstance(written := model.get("lora", {}), dict | None):
                filled["model"] = model | {"lora": lora | (written or {})}
    else:
        return data
    for name, defaults in sections.items():
        written = data.get(name, {})
        if isinstance(written, dict):
            filled[name] = _fitting(defaults, written) | written
    return filled


def defaults_of(config: TrialConfig) -> dict[str, dict[str, Any]]:
    """Return what a trial has by section where its spec says nothing, as far as it is not the fields' own default."""
    composition = config.model.composition
    if composition is None:
        sections = PIPELINE_DEFAULTS if config.model.pretrained is not None else {}
    elif not composition.networks:
        sections = COMPOSITION_DEFAULTS
    else:
        sections = NETWORK_COMPOSITION_DEFAULTS
        if composition.models[0].pretrained is None:
            sections = sections | {"sampling": _RESTING | sections["sampling"]}
    return {
        name: _fitting(defaults, getattr(config, name).model_dump()) for name, defaults in sections.items()
    }


def _preset_of(preset: Preset, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return what a preset says of adapters, and of sections as far as it goes with what is written."""
    sections = {name: dict(fields) for name, fields in preset.sections.items()}
    training = given if isinstance(given := data.get("training"), dict) else {}
    left_out: set[str] = set()
    if "images_per_prompt" in training or training.get("primal", _ALONE[0]) not in _ALONE:
        left_out |= {"batch_per_worker", "accumulation"}  # samples are compared with others of their batch
    if "batch_per_worker" in training:
        left_out.add("accumulation")
    for key in left_out:
        sections["training"].pop(key, None)
    return sections.pop("lora"), sections


_ALONE = ("reward_backprop", "truncated_backprop", "low_variance", "clipped_backprop")
"""Estimators of the primal gradient that a batch of one sample will do for, the default first."""


def _composition_defaults(data: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Return the sections of a composition, which depend on what is composed, and the base that it needs."""
    models = data["models"].values() if isinstance(data["models"], dict) else ()
    forms = {form_of(model) for model in models} - {None}
    networks = bool(forms) and "MixtureModel" not in forms
    sections = dict(NETWORK_COMPOSITION_DEFAULTS if networks else COMPOSITION_DEFAULTS)
    objective = data.get("objective")
    if isinstance(objective, dict) and "minmax_kl" in objective and objective.get("direction") != "forward":
        sections["objective"] = {"sampler": default_sampler(of_networks=networks)}
    if not networks:
        return sections, None
    if forms in ({"AdapterModel"}, {"PromptModel"}):
        sections["sampling"] = _RESTING | sections["sampling"]
    base = None if forms == {"PipelineModel"} else {"pretrained": EMBEDDED}
    drawn = data.get("model") or base or next(iter(models))
    if forms != {"PromptModel"} and isinstance(drawn, dict) and drawn.get("pretrained") == EMBEDDED:
        sections["prompts"] = EMBEDDED_PROMPTS
    return sections, base


def _fitting(defaults: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of a section that agree with what is written.

    Fewer steps than ``steps`` rest, with second order the one that must, in a chain that wastes none; the pretrained
    model is sampled twice as often as a trial.
    """
    steps, images = written.get("steps"), written.get("images")
    fitting = dict(defaults)
    if "rest" in defaults and written.get("order") == 2:
        fitting |= SECOND_ORDER
    elif "rest" in defaults and type(steps) is int and steps >= 1:
        fitting["rest"] = min(defaults["rest"], steps - 1)
    if "baseline_images" in defaults and type(images) is int and images >= 1:
        fitting["baseline_images"] = 2 * images
    return fitting
