"""Images of a trial, drawn as many at a time as the memory holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.errors import PlacementError
from orchestrator.execution.sampling.samples import SampleRow, sample_trial
from orchestrator.plan import make_plan
from orchestrator.spec.load import parse_spec
from trainers.models.base import Draw, Rollout
from trainers.models.pipeline_policy import PipelinePolicy

SPEC = """\
name: demo
model: {pretrained: embedded}
prompts: {train: [a red square], evaluate: [a blue circle, a green ring]}
sampling: {steps: 2, guidance: 2.0, rest: 0}
constraints:
  - {reward: saturation, at_least: 0.5, unit: sigma}
"""


def sampled(directory: Path) -> list[SampleRow]:
    config = make_plan(parse_spec(SPEC)).trials[0].config
    return sample_trial(config, {}, {"pretrained": 1.0}, directory, prompts=(), seed=5, count=3)


def hungry(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    rollout, sizes = PipelinePolicy.rollout, list[int]()

    def held(self: PipelinePolicy, draw: Draw, **options: Any) -> Rollout:
        sizes.append(len(draw))
        if len(draw) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return rollout(self, draw, **options)

    monkeypatch.setattr(PipelinePolicy, "rollout", held)
    return sizes


def test_where_memory_runs_out_images_are_drawn_fewer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images, to the rounding of kernels that are chosen by the size of a batch."""
    usual = sampled(tmp_path / "usual")
    sizes = hungry(monkeypatch, 1)
    found = sampled(tmp_path / "few")
    assert sizes == [3, *[1] * 6]  # of the pretrained model and of the trial
    assert [(row.prompt, row.seed) for row in found] == [(row.prompt, row.seed) for row in usual]
    for one, other in zip(found, usual, strict=True):
        for name in ("tuned", "pretrained"):
            few, all_at_once = (
                np.asarray(Image.open(getattr(row, name)), dtype=np.int16) for row in (one, other)
            )
            assert np.abs(few - all_at_once).max() <= 1
    assert (tmp_path / "few" / "grid.png").is_file()


def test_where_one_image_does_not_fit_there_is_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hungry(monkeypatch, 0)
    with pytest.raises(PlacementError, match=r"out of memory in sampling"):
        sampled(tmp_path)
