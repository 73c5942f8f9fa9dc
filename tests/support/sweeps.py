"""The shipped sweeps, ready to be planned."""

import shutil
from pathlib import Path

import yaml

from orchestrator.spec.records.constituents import shipped_adapters
from support.models.networks import write_adapter

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def plannable(path: Path, folder: Path) -> Path:
    """Return a shipped sweep; a copy beside stand-ins where it names adapters that are still to be exported."""
    models = yaml.safe_load(path.read_text(encoding="utf-8")).get("models") or {}
    named = [model["adapter"] for model in models.values() if "adapter" in model]
    missing = [name for name in named if name not in shipped_adapters()]
    if not missing:
        return path
    for name in missing:
        write_adapter(folder / name, width=320, prompt_width=768)
    return Path(shutil.copy(path, folder / path.name))


SHAPES = """\
name: shapes
model: {pretrained: embedded, lora: {rank: 2}}
sampling: {steps: 4, rest: 1, guidance: 3.0}
constraints:
  - {reward: saturation, at_least: 0.2, unit: sigma}
  - {reward: clip, at_least: 0.1, unit: sigma}
methods: [constrained, {weighted: {weights: equal, scale: 0.2}}]
training: {steps: 4, batch_per_worker: 2}
evaluation: {images: 8, every: 2}
"""
"""Two trials on the shipped pipeline: all that a run does, as small as it goes."""
