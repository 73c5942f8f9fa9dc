"""What a trial is known by: a hash of what in its config differs from the defaults.

A field that a later version adds, or a default that it changes, changes no id. So equal ids mean equal trials only
among configs of one version; whoever takes over a result that is there compares ``meaning`` too, where every default is
written out.
"""

import hashlib
import json
from typing import Any

from orchestrator.spec.defaults import defaults_of
from orchestrator.spec.files.contents import model_identity
from orchestrator.spec.records import registry
from orchestrator.spec.records.compositions import LEAST
from orchestrator.spec.records.samplers import default_sampler
from trainers.config import PRIMAL_PARAMETERS, Frozen, TrialConfig

_ID_TAG = "cdsweep-trial-3"
"""Changes when what our own rewards, estimators or samplers compute does: of them trials know the names alone."""
_ID_DIGITS = 12
_HOW = {"evaluation": ("batch",), "training": ("offload",)}
"""What says how a trial computes, and not what, by section."""


def trial_id(config: TrialConfig) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of what defines a trial."""
    text = json.dumps(_plain(_identity(config)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{_ID_TAG}\n{text}".encode()).hexdigest()[:_ID_DIGITS]


def meaning(config: TrialConfig) -> dict[str, Any]:
    """Return what the trials of a sweep have in common, as plain data with every default written out.

    Left out is what tells them apart (seed, method, weights, thresholds), and what is how and not what.
    """
    data = config.model_dump(
        mode="json",
        exclude_none=True,
        exclude={"model", "seed", "method", "weights", "frontier", "constraints", "measured"},
    )
    data["model"] = model_identity(config)
    data["constraints"] = {
        c.name: c.model_dump(mode="json", exclude={"name", "bound", "tightest"}) for c in config.constraints
    }
    data["rewards"] = {
        reward.name: registry.meant(reward).model_dump(mode="json", exclude_none=True)
        for reward in config.rewards
    }
    _drop_how(data)
    plain: dict[str, Any] = _plain(data)
    return plain


def _identity(config: TrialConfig) -> dict[str, Any]:
    """Return plain data that is the same for all configs that mean the same trial."""
    data = config.model_dump(
        mode="json", exclude_none=True, exclude_defaults=True, exclude={"model", "prompts", "measured"}
    )
    if config.prompts is not None:
        data["prompts"] = config.prompts.digest
    for name, usual in defaults_of(config).items():
        section = data.setdefault(name, {})
        for key, value in usual.items():
            section.pop(key, None)
            if (found := getattr(getattr(config, name), key)) != value:
                section[key] = found
    training = data.setdefault("training", {})
    estimator = PRIMAL_PARAMETERS.get(config.training.primal)
    _put(training, "primal_parameters", _differing(estimator, config.training.primal_parameters))
    _drop_how(data)
    for reward, written in zip(data["rewards"], config.rewards, strict=True):
        reward.pop("revisions", None)  # the contents have them
        _put(reward, "parameters", _differing(registry.REWARD_KINDS.get(written.kind), written.parameters))
        if written.kind == LEAST:
            reward["parameters"] = {"of": sorted(written.parameters.get("of", []))}
    if config.method == "weighted" and config.model.composition is None:
        for constraint in data["constraints"]:
            del constraint["bound"]  # nothing in training knows it: the trial is only judged by it
    for key in ("rewards", "constraints"):
        data[key] = sorted(data[key], key=lambda item: str(item["name"]))
    # What is empty says nothing: a section that has all defaults, as one that a later version adds.
    return {key: value for key, value in data.items() if value != {}} | {"model": _model(config)}


def _model(config: TrialConfig) -> dict[str, Any]:
    """Return the model, or the composition without what means nothing in it."""
    data = model_identity(config, differing=True)
    lora, composition = config.model.lora, config.model.composition
    if lora is not None and lora.alpha == lora.rank:
        data["lora"].pop("alpha", None)
    if composition is None:
        return data
    found = data["composition"]
    for model in found["models"]:
        _put(model, "rewards", sorted(model.get("rewards", [])))
    found["models"].sort(key=lambda item: item["name"])
    _put(found, "offsets", {name: offset for name, offset in composition.offsets.items() if offset})
    usual = default_sampler(of_networks=composition.networks)
    # A mixture is sampled by choosing a model.
    meant = usual if composition.direction == "forward" else composition.sampler
    _put(found, "sampler", None if meant == usual else meant)
    if (distilled := composition.distillation) is not None and distilled.lora.alpha == distilled.lora.rank:
        found["distillation"].get("lora", {}).pop("alpha", None)
    return data


def _drop_how(data: dict[str, Any]) -> None:
    """Leave out what says how a trial computes."""
    for section, keys in _HOW.items():
        for key in keys:
            data.get(section, {}).pop(key, None)


def _differing(model: type[Frozen] | None, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters without those that have their defaults; all of them where another package has the model."""
    if model is None:
        return parameters
    checked = model.model_validate_json(json.dumps(parameters))
    return checked.model_dump(mode="json", exclude_none=True, exclude_defaults=True, exclude=set(model.how))


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, or leave it out where there is nothing to say."""
    data.pop(key, None)
    if value:
        data[key] = value


def _plain(value: Any) -> Any:
    """Return ``value`` with 1.0 and 1, and 0.0 and -0.0, written alike."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
