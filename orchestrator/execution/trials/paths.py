"""Paths in a trial's config: of the pipelines, adapters and reward weights that a spec names.

A path in a spec is relative to where the command was started, and Ray's processes work elsewhere; a job carries what
lies only on the machine that it was submitted from. Trial ids come from what was written, wherever it lies.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainers.config import TrialConfig

CARRIED = "CDSWEEP_CARRIED"
"""Variable of a job: JSON that maps paths as they were written to where the job has carried them."""


def absolute(config: TrialConfig) -> TrialConfig:
    """Return the config with the directories of model and rewards as seen from any other directory."""
    return relocated(config, lambda path: _absolute(located(path)))


def located(path: str) -> str:
    """Return where a path of the spec lies on this machine: of a job, where it has been carried to."""
    carried: dict[str, str] = json.loads(os.environ.get(CARRIED, "{}"))
    return carried.get(path, path)


def local_paths(config: TrialConfig) -> list[str]:
    """Return what the config names by path and is there, as it was written, sorted."""
    found: set[str] = set()

    def note(path: str) -> str:
        if _absolute(path) != path or Path(path).is_absolute():
            found.add(path)
        return path

    relocated(config, note)
    return sorted(path for path in found if Path(path).exists())


def relocated(config: TrialConfig, move: Callable[[str], str]) -> TrialConfig:
    """Return the config with every string that may be a path moved; hub ids and texts are strings too."""

    def moved(value: Any) -> Any:
        return move(value) if isinstance(value, str) and "/" in value else value

    def loaded(_: str, part: Any) -> Any:
        paths = {key: moved(getattr(part, key, None)) for key in ("pretrained", "adapter")}
        return part.model_copy(update={key: path for key, path in paths.items() if path is not None})

    rewards = tuple(
        reward.model_copy(
            update={"parameters": {key: moved(value) for key, value in reward.parameters.items()}}
        )
        for reward in config.rewards
    )
    return config.model_copy(update={"model": config.model.mapped(loaded), "rewards": rewards})


def _absolute(path: str) -> str:
    """Return the absolute path of what is there; anything else, such as a hub id, as it is."""
    try:
        return str(Path(path).absolute()) if Path(path).exists() else path
    except (OSError, ValueError):  # longer than a path may be, or with a null byte
        return path
