"""A sweep of the shipped flow model by the real command, and its adapter in plain diffusers as its card says."""

import json
import runpy
from pathlib import Path

import pytest
from support.processes import Sweep
from typer.testing import CliRunner

from orchestrator.cli import app
from trainers.adapters.files import CARD

FLOWS = """\
name: flows
model: {pretrained: embedded-flow, lora: {rank: 2}}
sampling: {steps: 4, rest: 1, guidance: 2.0}
constraints:
  - {reward: saturation, at_least: 0.2, unit: sigma}
  - {reward: clip, at_least: 0.1, unit: sigma}
methods: [constrained, {weighted: {weights: equal, scale: 0.2}}]
training: {steps: 4, batch_per_worker: 2}
evaluation: {images: 8, every: 2}
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_the_shipped_flow_model_from_run_to_plain_diffusers(sweep: Sweep, tmp_path: Path) -> None:
    sweep.name = "flows"
    sweep.write(FLOWS)
    run = sweep.run("run", "spec.yaml", "--json")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert {m["method"]: m["trials"] for m in document["methods"]} == {"constrained": 1, "weighted": 1}
    assert all(trial["kl"] > 0 for method in document["methods"] for trial in method["front"])

    trial_id = min(sweep.finished())
    command = ["export", "flows", trial_id, str(tmp_path / "out"), "--storage", str(sweep.storage)]
    exported = CliRunner().invoke(app, command)
    assert exported.exit_code == 0, exported.stderr
    card = (tmp_path / "out" / CARD).read_text()
    lines = card.split("```python\n")[1].split("```")[0]
    assert "StableDiffusion3Pipeline" in lines
    (tmp_path / "card.py").write_text(lines.replace('"DIRECTORY"', repr(str(tmp_path / "out"))))
    made = runpy.run_path(str(tmp_path / "card.py"))
    assert made["image"].size == (32, 32)
    assert made["pipeline"].get_list_adapters() == {"transformer": ["default_0"]}
