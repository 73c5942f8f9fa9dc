"""Architectures of models that are known by name, so that something can be told of them before they are here."""

import json
from pathlib import Path
from typing import Any

_ARCHITECTURES = Path(__file__).parent / "architectures"
_NAMED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "stable-diffusion-1",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-1",
    "CompVis/stable-diffusion-v1-4": "stable-diffusion-1",
}
"""By hub id."""


def known_configs(name: str) -> dict[str, dict[str, Any]] | None:
    """Return the configurations of a hub id's components, by component; None where the id is not known."""
    file = _NAMED.get(name)
    if file is None:
        return None
    found: dict[str, dict[str, Any]] = json.loads(
        (_ARCHITECTURES / f"{file}.json").read_text(encoding="utf-8")
    )
    return found
