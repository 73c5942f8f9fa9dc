"""Images from a trained adapter beside the pretrained model, in this process."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import SpecError, StorageError
from trainers.config import PromptsConfig, TrialConfig


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One prompt and seed: what the pretrained model and the trial make of them."""

    prompt: str
    seed: int
    tuned: str
    """Path of the trial's image."""
    pretrained: str


def sample_trial(
    config: TrialConfig,
    adapter: Mapping[str, bytes],
    directory: Path,
    *,
    prompts: Sequence[str],
    seed: int,
    count: int,
) -> list[SampleRow]:
    """Write ``count`` images of the trial, and the pretrained model's at the same seeds; prompts take turns.

    Raises:
        SpecError: model or adapter cannot be used; says why.
        StorageError: the directory cannot be made.
    """
    import torch
    from PIL import Image

    from orchestrator.report.images import strip
    from trainers.evaluate import pixels
    from trainers.models.pipeline_policy import PipelinePolicy

    config = config.tuned
    asked = tuple(prompts) or (config.prompts.evaluate if config.prompts else ())
    try:
        policy = PipelinePolicy.build(
            config.model, PromptsConfig(train=asked, evaluate=asked), config.sampling, config.training
        )
        policy.load_adapter(adapter)
    except ValueError as error:
        raise SpecError(str(error)) from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror or error}") from error
    rows: list[SampleRow] = []
    shown: dict[str, list[Any]] = {"pretrained": [], "tuned": []}
    for first in range(0, count, policy.chunk):
        draw = policy.fixed_draw(seed, first, min(first + policy.chunk, count))
        paths: dict[str, list[str]] = {}
        for name, strips in shown.items():
            with torch.no_grad():
                images = policy.rollout(draw, reference=name == "pretrained").samples
            shots = pixels(images)
            strips.append(shots)
            paths[name] = [str(directory / f"{number}-{name}.png") for number in draw.seeds.tolist()]
            for path, image in zip(paths[name], shots, strict=True):
                out = io.BytesIO()
                Image.fromarray(image).save(out, format="PNG")
                Path(path).write_bytes(out.getvalue())
        assert draw.prompts is not None
        rows += [
            SampleRow(prompt=prompt, seed=number, tuned=tuned, pretrained=pretrained)
            for prompt, number, tuned, pretrained in zip(
                draw.prompts, draw.seeds.tolist(), paths["tuned"], paths["pretrained"], strict=True
            )
        ]
    grid = strip(np.concatenate(shown["tuned"]), above=strip(np.concatenate(shown["pretrained"])))
    (directory / "grid.png").write_bytes(grid)
    return rows
