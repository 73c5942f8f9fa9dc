"""An adapter that a command names, looked at before anything is started: is it one, of this base, for this sampler?"""

import json
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.spec.files.pipelines import misfit
from orchestrator.spec.records.constituents import adapter_directory, shipped_adapters
from orchestrator.spec.text.problems import suggestion
from trainers.adapters.files import CARD, CONFIG, WEIGHTS, defining_files
from trainers.adapters.forms import MERGE
from trainers.adapters.reading import read_files
from trainers.config import SamplingConfig, TrialConfig

STATED_SAMPLER = "cdsweep_sampling: "
"""Begins the line of a card's front matter that has the sampler in JSON."""


def lora_files(name: str, config: TrialConfig) -> dict[str, bytes]:
    """Return the files of an adapter, as ``adapters/TRIAL/`` has them.

    Args:
        name: Of a shipped adapter, or the path of a directory, or of a file of safetensors.
        config: Of a trial on the pipeline that it is for.

    Raises:
        UsageError: There is none, it is no plain LoRA, or it is of another base or for another sampler; says why.
    """
    place = adapter_directory(name)
    try:
        weights, *beside = _defining(place)
        files = {WEIGHTS: weights.read_bytes()}
        if beside:
            files[CONFIG] = beside[0].read_bytes()
    except (OSError, ValueError) as error:  # ValueError: also a null byte in the path
        why = getattr(error, "strerror", None) or str(error)
        hint = suggestion(name, shipped_adapters(), "shipped adapters")
        raise UsageError(f"there is no adapter {name}: {why}{hint}") from error
    base = config.model.pretrained
    assert base is not None, "a pipeline"
    try:
        updates = read_files(files)
    except ValueError as error:
        why = str(error).replace(WEIGHTS, weights.name).removesuffix(f"; {MERGE}")
        raise UsageError(f"{name} cannot be read as a LoRA of a UNet: {why}") from error
    shown = weights.name if weights == place else f"{place.name}/{weights.name}"
    if (rule := misfit(updates, shown, base)) is not None:
        raise UsageError(f"{name} {rule}")
    if (stated := _stated_sampler(weights.parent / CARD)) is not None:
        _refuse_other_sampler(name, stated, config.sampling)
    return files


def sampler_line(sampling: SamplingConfig) -> str:
    """Return the line of a card's front matter that ``lora_files`` reads; JSON is YAML too."""
    return STATED_SAMPLER + json.dumps(sampling.model_dump(mode="json"))


def _defining(place: Path) -> tuple[Path, ...]:
    if not place.is_file():
        return defining_files(place)
    config = place.parent / CONFIG
    return (place, config) if config.is_file() else (place,)


def _stated_sampler(card: Path) -> dict[str, Any] | None:
    """Return the sampler that a card says the adapter was trained for; None where none does."""
    try:
        lines = card.read_text(encoding="utf-8").split("---\n")[1].splitlines()
        found = next(line for line in lines if line.startswith(STATED_SAMPLER))
        stated = json.loads(found.removeprefix(STATED_SAMPLER))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return stated if isinstance(stated, dict) else None


def _refuse_other_sampler(name: str, stated: dict[str, Any], asked: SamplingConfig) -> None:
    ours = asked.model_dump(mode="json")
    # A card that lacks a setting is older than it: the chain was then what is the default now.
    stated = SamplingConfig().model_dump(mode="json") | stated
    apart = [key for key in ours if stated[key] != ours[key]]
    if apart:
        settings = " ".join(f"--set sampling.{key}={json.dumps(stated[key])}" for key in apart)
        here = ", ".join(f"{key} {json.dumps(ours[key])}" for key in apart)
        raise UsageError(
            f"{name} was trained for another sampler than this spec's ({here}), as its {CARD} says: KL and rewards "
            f"hold for one sampler; take its own with {settings}"
        )
