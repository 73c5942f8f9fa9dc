"""What a spec need not say of a pipeline whose family is known: a row for each family, beside their registry.

Guidance is what the pipeline's call takes by default, or what the model's authors draw with. Steps are fewer than an
image is drawn with (28 to 50): a trial differentiates through them, and public trainers of rewards take 10 to 20. The
adapter rests in the last of them, which have most of the KL's weight. Batches are what the estimate of memory fits on
one card at the model's own size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from trainers.pipelines.asking import Configs, untold
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


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Fields of a spec, by what they are there."""

    guidance: float | None
    """``sampling.guidance``; None is off."""
    steps: int = 20
    rest: int = 2
    eta: float = 1.0
    spacing: Literal["leading", "trailing", "linspace"] | None = None
    """None: as the pipeline's scheduler says."""
    learning_rate: float = 3.0e-4
    """Of Adam for adapters of transformers and of SDXL (Flow-GRPO, arXiv 2505.05470)."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    rank: int = 8
    batch_per_worker: int = 1
    accumulation: int = 32
    images: int = 128
    """``evaluation.images``."""
    batch: int | None = 4
    """``evaluation.batch``."""

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """The fields by section of the spec, those of adapters under ``lora``; what is None is left out."""
        found: dict[str, dict[str, Any]] = {
            "lora": {"rank": self.rank},
            "sampling": {
                "steps": self.steps,
                "rest": self.rest,
                "eta": self.eta,
                "spacing": self.spacing,
                "guidance": self.guidance,
            },
            "training": {
                "batch_per_worker": self.batch_per_worker,
                "accumulation": self.accumulation,
                "learning_rate": self.learning_rate,
                "precision": self.precision,
                "gradient_checkpointing": True,
            },
            "evaluation": {
                "images": self.images,
                "baseline_images": 2 * self.images,
                "batch": self.batch,
            },
        }
        return {
            section: {key: value for key, value in fields.items() if value is not None}
            for section, fields in found.items()
        }


PRESETS: Mapping[Family, Preset] = {
    # Steps, guidance, learning rate and rank of Khalafi et al. 2025 (arXiv 2508.19104), as in the sd15 sweeps.
    STABLE_DIFFUSION: Preset(
        guidance=5.0,
        steps=15,
        learning_rate=1.0e-3,
        rank=4,
        batch_per_worker=2,
        images=256,
        batch=None,
    ),
    # Its scheduler begins below the noisiest level (leading), of which few steps waste much.
    STABLE_DIFFUSION_XL: Preset(guidance=5.0, spacing="trailing"),
    STABLE_DIFFUSION_3: Preset(guidance=4.5),  # of 3.5's authors; the pipeline takes 7 for 3
    FLUX_1: Preset(guidance=3.5),
    Z_IMAGE: Preset(guidance=4.0),  # of its authors, 3 to 5
    FLUX_2: Preset(guidance=4.0),
    FLUX_2_KLEIN: Preset(guidance=4.0),
    QWEN_IMAGE: Preset(guidance=4.0),
}
_FEW = {FLUX_1: 4, FLUX_2_KLEIN: 4, Z_IMAGE: 8}
"""Steps that models were distilled to, by family: they draw without guidance, and the adapter rests in the last."""
_BY_NAME = ("Tongyi-MAI/Z-Image-Turbo",)
"""Distilled models whose configurations are those of others."""


def preset_of(family: Family, configs: Configs, name: str = "") -> Preset:
    """Return what a spec need not say of a pipeline.

    Args:
        family: Of the pipeline.
        configs: Of its components, as far as they are known: they tell whether it was distilled to few steps.
        name: As a hub id.
    """
    usual, steps = PRESETS[family], _FEW.get(family)
    told_nothing = family.guidance != "free" and untold(family, configs)
    distilled = told_nothing or configs.get("", {}).get("is_distilled") or _named(name)
    return usual if steps is None or not distilled else replace(usual, steps=steps, rest=1, guidance=None)


def _named(name: str) -> bool:
    return name.lower() in map(str.lower, _BY_NAME)
