"""Weights of rewards in directories of this machine, looked at before anything is started: without torch.

Only what cannot be meant: a head on another CLIP than the one it reads. Loading says the rest.
"""

import importlib.resources
from pathlib import Path

from orchestrator.spec.records.rewards import Rewards, part_of
from orchestrator.spec.text.problems import Problem
from trainers.adapters.header import read_header
from trainers.config import EMBEDDED
from trainers.pipelines.configs import read_config

_HEAD, _FIRST = "model.safetensors", "layers.0.weight"
_CLIP = ("trainers.models.embedded", "weights/clip")
_PROJECTION = 512
"""Of a CLIP whose configuration leaves it out."""


def reward_problems(rewards: Rewards) -> list[Problem]:
    """Return what is wrong with the weights that rewards name by path."""
    problems = []
    for name, reward in rewards.everything.items():
        if reward.kind != "aesthetic":
            continue
        head, clip = reward.parameters["model"], reward.parameters["clip"]
        taken, given = _head_width(Path(head)), _clip_width(clip)
        if taken is not None and given is not None and taken != given:
            rule = (
                f"the head in {head} reads embeddings of width {taken}, and the clip {clip} gives {given}: they belong "
                "to different CLIPs"
            )
            problems.append(Problem(path=part_of(rewards.places[name], "reward"), rule=rule))
    return problems


def _head_width(source: Path) -> int | None:
    """Return the width of the embedding that a head reads; None where it is not here, or a pickle."""
    try:
        with (source if source.is_file() else source / _HEAD).open("rb") as file:
            shapes = read_header(file).shapes
    except (OSError, ValueError):
        return None
    return next((shape[-1] for key, shape in shapes.items() if key.endswith(_FIRST) and shape), None)


def _clip_width(source: str) -> int | None:
    """Return the width of a CLIP's embeddings; None where it is not here."""
    package, folder = _CLIP
    place = Path(str(importlib.resources.files(package))) / folder if source == EMBEDDED else Path(source)
    config = read_config(place / "config.json")
    return None if config is None else int(config.get("projection_dim", _PROJECTION))
