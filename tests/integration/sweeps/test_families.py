"""Sweeps of families beside Stable Diffusion by the real command, and their adapters in plain diffusers."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.models.families.flux import write_flux
from support.models.families.flux_2 import write_flux_2
from support.models.families.qwen_image import write_qwen_image
from support.models.families.xl import write_xl
from support.models.families.z_image import write_z_image
from support.processes import Sweep
from support.sweeps import SHAPES
from typer.testing import CliRunner

from orchestrator.cli import app
from trainers.adapters.files import CARD

FLOWS = (
    SHAPES.replace("name: shapes", "name: flows")
    .replace("pretrained: embedded", "pretrained: embedded-flow")
    .replace("guidance: 3.0", "guidance: 2.0")
)
XL = """\
name: xl
model: {pretrained: ./pipeline, lora: {rank: 2}}
prompts: {train: [red circle, blue square], evaluate: [red square, blue circle]}
sampling: {steps: 3, rest: 1, guidance: 3.0}
constraints: [{reward: saturation, at_least: 0.2, unit: sigma}]
methods: [constrained, {weighted: {weights: equal, scale: 0.2}}]
training: {steps: 4, batch_per_worker: 2, precision: fp32, gradient_checkpointing: false}
evaluation: {images: 6, every: 2}
"""


def ran(sweep: Sweep, name: str, spec: str, target: Path) -> dict[str, Any]:
    """Run two trials, export one, and return what the lines of its card make."""
    sweep.name = name
    sweep.write(spec)
    run = sweep.run("run", "spec.yaml", "--json")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert {m["method"]: m["trials"] for m in document["methods"]} == {"constrained": 1, "weighted": 1}
    assert all(trial["kl"] > 0 for method in document["methods"] for trial in method["front"])

    command = ["export", name, min(sweep.finished()), str(target), "--storage", str(sweep.storage)]
    exported = CliRunner().invoke(app, command)
    assert exported.exit_code == 0, exported.stderr
    lines = (target / CARD).read_text().split("```python\n")[1].split("```")[0]
    lines = lines.replace('"DIRECTORY"', repr(str(target))).replace(
        '"./pipeline"', repr(str(sweep.folder / "pipeline"))
    )
    (target / "card.py").write_text(lines)
    return runpy.run_path(str(target / "card.py"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_the_shipped_flow_model_from_run_to_plain_diffusers(sweep: Sweep, tmp_path: Path) -> None:
    made = ran(sweep, "flows", FLOWS, tmp_path / "out")
    assert type(made["pipeline"]).__name__ == "StableDiffusion3Pipeline"
    assert made["image"].size == (32, 32)
    assert made["pipeline"].get_list_adapters() == {"transformer": ["default_0"]}


ASKED = "pipeline, height: 16, width: 24, max_sequence_length: 100, lora"
FLUX = XL.replace("name: xl", "name: flux").replace("pipeline, lora", ASKED)
KLEIN = XL.replace("name: xl", "name: klein").replace("pipeline, lora", ASKED)
QWEN = XL.replace("name: xl", "name: qwen").replace("pipeline, lora", ASKED)
Z_IMAGE = XL.replace("name: xl", "name: z-image").replace("pipeline, lora", ASKED)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("spec", "write", "pipeline", "size"),
    [
        (XL, lambda folder: write_xl(folder, sample_size=8), "StableDiffusionXLPipeline", (16, 16)),
        pytest.param(FLUX, write_flux, "FluxPipeline", (24, 16), marks=pytest.mark.exhaustive),
        pytest.param(KLEIN, write_flux_2, "Flux2KleinPipeline", (24, 16), marks=pytest.mark.exhaustive),
        pytest.param(QWEN, write_qwen_image, "QwenImagePipeline", (24, 16), marks=pytest.mark.exhaustive),
        pytest.param(Z_IMAGE, write_z_image, "ZImagePipeline", (24, 16), marks=pytest.mark.exhaustive),
    ],
    ids=["sdxl", "flux", "klein", "qwen", "z_image"],
)
def test_a_family_from_run_to_plain_diffusers(
    sweep: Sweep,
    tmp_path: Path,
    spec: str,
    write: Callable[[Path], Path],
    pipeline: str,
    size: tuple[int, int],
) -> None:
    write(sweep.folder / "pipeline")
    made = ran(sweep, str(yaml.safe_load(spec)["name"]), spec, tmp_path / "out")
    assert type(made["pipeline"]).__name__ == pipeline
    assert made["image"].size == size
    assert list(made["pipeline"].get_list_adapters().values()) == [["default_0"]]
