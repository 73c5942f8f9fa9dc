"""Models that are known by name: their family and architecture, told before they are here."""

import json
from pathlib import Path
from typing import Any

from trainers.pipelines.families import (
    FLUX_1,
    FLUX_2,
    FLUX_2_KLEIN,
    QWEN_IMAGE,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_3,
    STABLE_DIFFUSION_XL,
    Z_IMAGE,
    Family,
)

_ARCHITECTURES = Path(__file__).parent / "architectures"
_NAMED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (STABLE_DIFFUSION, "stable-diffusion-1"),
    "runwayml/stable-diffusion-v1-5": (STABLE_DIFFUSION, "stable-diffusion-1"),
    "CompVis/stable-diffusion-v1-4": (STABLE_DIFFUSION, "stable-diffusion-1"),
    "stabilityai/stable-diffusion-xl-base-1.0": (STABLE_DIFFUSION_XL, "stable-diffusion-xl"),
    "stabilityai/stable-diffusion-3.5-medium": (STABLE_DIFFUSION_3, "stable-diffusion-3.5-medium"),
    "black-forest-labs/FLUX.1-dev": (FLUX_1, "flux.1-dev"),
    "black-forest-labs/FLUX.1-schnell": (FLUX_1, "flux.1-schnell"),
    "black-forest-labs/FLUX.2-dev": (FLUX_2, "flux.2-dev"),
    "black-forest-labs/FLUX.2-klein-base-4B": (FLUX_2_KLEIN, "flux.2-klein-base-4b"),
    "black-forest-labs/FLUX.2-klein-4B": (FLUX_2_KLEIN, "flux.2-klein-4b"),
    "Qwen/Qwen-Image": (QWEN_IMAGE, "qwen-image"),
    "Tongyi-MAI/Z-Image": (Z_IMAGE, "z-image"),
    "Tongyi-MAI/Z-Image-Turbo": (Z_IMAGE, "z-image"),
}
"""Family and file, by hub id."""


def known_family(name: str) -> Family | None:
    """Return the family of a hub id; None where the id is not known."""
    found = _found(name)
    return None if found is None else found[0]


def known_configs(name: str) -> dict[str, dict[str, Any]] | None:
    """Return the configurations of a hub id's components, by component; None where the id is not known."""
    found = _found(name)
    if found is None:
        return None
    file = _ARCHITECTURES / f"{found[1]}.json"
    configs: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return configs


def _found(name: str) -> tuple[Family, str] | None:
    """Return family and file of a hub id, which means the same in any case."""
    return next((entry for known, entry in _NAMED.items() if known.lower() == name.lower()), None)


def names_of(family: Family) -> tuple[str, ...]:
    """Return the hub ids that are known of a family."""
    return tuple(name for name, (form, _) in _NAMED.items() if form == family)
