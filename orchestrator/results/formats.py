"""Formats in which adapters leave a sweep."""

from enum import StrEnum


class Format(StrEnum):
    """Whose names the tensors of an exported adapter have."""

    diffusers = "diffusers"
    """Those of diffusers and peft."""
    kohya = "kohya"
    """Those of kohya's scripts, which ComfyUI knows; diffusers reads them too."""
