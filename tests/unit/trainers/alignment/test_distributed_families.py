"""Families of pipelines: two gloo workers against one with the doubled batch, a resumed trial against a whole one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gloo import run_workers
from support.models.families.flux import SIZE, write_flux
from support.models.families.flux_2 import write_flux_2
from support.models.families.qwen_image import write_qwen_image
from support.models.families.xl import write_xl
from support.models.families.z_image import write_z_image
from support.tiers import exhaustive

pytestmark = pytest.mark.distributed

WORKER = """
import dataclasses, hashlib
from orchestrator.plan import make_job, make_plan
from orchestrator.spec.load import parse_spec
from trainers.alignment import paired
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO

class Recorder(LocalTrialIO):
    def save(self, step, files, history):
        super().save(step, files, history)
        saved[step] = dict(files)

saved = {}

def run(job, **port):
    paired._known.clear()  # a new process knows no scores of the reference
    outcome = run_trial(job, Recorder(rank=rank, world_size=size, **port))
    assert outcome.status == "succeeded", outcome.error
    rows = [dataclasses.replace(r, seconds=0.0, images_per_second=0.0) for r in outcome.history]
    return {
        "history": [dataclasses.asdict(row) for row in rows],
        "multipliers": outcome.multipliers,
        "kl": outcome.evaluation.kl.tolist(),
        "rewards": outcome.evaluation.rewards["saturation"].tolist(),
        "adapter": hashlib.sha256(b"".join(outcome.adapter.values())).hexdigest(),
    }

seen = {}
baseline = BaselineStatistics(rewards={"saturation": RewardStatistics(mean=0.3, std=0.1)}, samples=8)
for name, document in given[0].items():
    document["training"]["batch_per_worker"] = 4 // size
    document["resources"] = {"workers": size}
    job = make_job(make_plan(parse_spec(json.dumps(document))).trials[0], baseline)
    whole = run(job)
    seen[name] = {"whole": whole, "resumed": run(job, checkpoint=saved[2])}
print(json.dumps(seen))
"""


def documents(folder: Path) -> dict[str, Any]:
    """A spec for each family."""
    shipped = Path("embedded-flow")
    sources: dict[str, tuple[Path, dict[str, Any]]] = {
        "sdxl": (write_xl(folder / "xl"), {}),
        "sd3": (shipped, {}),
        "flux": (write_flux(folder / "flux"), SIZE),
        "klein": (write_flux_2(folder / "klein"), SIZE | {"max_sequence_length": 60}),
        "qwen": (write_qwen_image(folder / "qwen"), SIZE | {"max_sequence_length": 400}),
        "z_image": (write_z_image(folder / "z_image"), SIZE | {"max_sequence_length": 100}),
    }
    boxes = {
        # One adapter for all thresholds of a box: the same trial, whose samples have thresholds of their own.
        "sd3": ("box", {}),
        "klein": ("box_scored", {"primal": "log_variance"}),
    }
    found = {
        name: {
            "name": name.replace("_", "-"),
            "model": {"pretrained": str(source), "lora": {"rank": 2}, **asked},
            "prompts": {"train": ["red circle", "blue square"], "evaluate": ["red square", "blue circle"]},
            "sampling": {"steps": 3, "rest": 1, "guidance": 2.0},
            "constraints": [{"reward": "saturation", "at_least": 0.3, "unit": "sigma"}],
            "training": {"steps": 4, "checkpoint_every": 2, "learning_rate": 0.01},
            "evaluation": {"images": 4, "every": 1},
        }
        for name, (source, asked) in sources.items()
    }
    for name, (box, training) in boxes.items():
        found[box] = found[name] | {
            "constraints": [{"reward": "saturation", "at_least": {"range": [0.2, 0.6]}, "unit": "sigma"}],
            "methods": [{"frontier": {"points": 2}}],
            "duals": {"start": 2.0},
            "training": found[name]["training"] | training,
        }
    return found


UNLIKE = ("sdxl", "box", "box_scored")
"""A UNet; transformers by flow matching, one of joint blocks alone, one with single blocks and scores of paths."""
ALIKE = ("sd3", "flux", "klein", "qwen", "z_image")


@pytest.mark.parametrize("names", [UNLIKE, *exhaustive(ALIKE)], ids=["unlike", "alike"])
def test_two_workers_are_one_with_the_doubled_batch_and_resume_bit_for_bit(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    every = documents(tmp_path)
    assert every.keys() == {*UNLIKE, *ALIKE}
    specs = {name: every[name] for name in names}
    (alone,) = run_workers(WORKER, tmp_path, 1, specs)
    first, second = run_workers(WORKER, tmp_path, 2, specs)
    assert first == second, "every rank holds the same bits"
    for name in specs:
        one, two = alone[name]["whole"], first[name]["whole"]
        assert alone[name]["resumed"] == one
        assert first[name]["resumed"] == two
        assert one["history"][-1]["kl"] > 0
        assert len(one["history"]) == len(two["history"]) == 4
        for key in ("kl", "lagrangian"):
            rows = [[record[key] for record in found["history"]] for found in (one, two)]
            np.testing.assert_allclose(rows[1], rows[0], rtol=1e-2, atol=1e-4, err_msg=f"{name}: {key}")
        for key in ("kl", "rewards"):
            np.testing.assert_allclose(two[key], one[key], rtol=1e-2, atol=1e-3, err_msg=f"{name}: {key}")
        assert two["multipliers"] == pytest.approx(one["multipliers"], rel=1e-3)
