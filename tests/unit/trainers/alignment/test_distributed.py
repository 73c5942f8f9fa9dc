"""Two gloo workers against one with the doubled batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gloo import run_workers

pytestmark = pytest.mark.distributed

WORKER = """
import dataclasses, hashlib
from trainers.problem import run_trial
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO

class Recorder(LocalTrialIO):
    def save(self, step, files, history):
        super().save(step, files, history)
        saved[step] = dict(files)

saved = {}
arguments, primals = given

def run(job, io):
    outcome = run_trial(job, io)
    assert outcome.status == "succeeded", outcome.error
    return {
        "history": [
            dataclasses.asdict(dataclasses.replace(r, seconds=0.0, images_per_second=0.0)) for r in outcome.history
        ],
        "multipliers": outcome.multipliers,
        "kl": outcome.evaluation.kl.tolist(),
        "log_ratio": outcome.evaluation.log_ratio.tolist(),
        "x": outcome.evaluation.rewards["x"].tolist(),
        "parameters": hashlib.sha256(saved[10]["state.safetensors"]).hexdigest(),
    }

seen = {}
for primal, parameters in primals.items():
    arguments["training"] |= {"primal": primal, "primal_parameters": parameters}
    workers = 2 if arguments.get("elastic") else size
    job = gaussian_job({"x": 1.0}, workers=workers, **arguments)
    whole = run(job, Recorder(rank=rank, world_size=size))
    resumed = run(job, Recorder(rank=rank, world_size=size, checkpoint=saved[5]))
    seen[primal] = {"whole": whole, "resumed": resumed}
print(json.dumps(seen))
"""

PRIMALS: dict[str, dict[str, Any]] = {
    "log_variance": {},
    "reward_backprop": {},
    "truncated_backprop": {"steps": 4, "random": True},
    "low_variance": {"copies": 2},
    "clipped_backprop": {"limit": 0.5},
    "reused_rollouts": {"steps": 4, "radius": 1.0},
}


def trained(directory: Path, size: int, batch: int, *, elastic: bool = False) -> list[dict[str, Any]]:
    """Run one trial per estimator on so many workers; returns what each worker saw, by estimator."""
    arguments = {
        "elastic": elastic,
        "sampling": {"steps": 8},
        "training": {
            "steps": 15,
            "batch_per_worker": batch,
            "accumulation": 2,
            "width": 16,
            "checkpoint_every": 5,
            "learning_rate": 1e-2,
        },
        "duals": {"kind": "nu_pi"},
        "evaluation": {"every": 1, "images": 5000},
    }
    return run_workers(WORKER, directory, size, arguments, PRIMALS)


def test_two_workers_are_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """33 samples per worker: an antithetic pair is split between the two. Every primal estimator."""
    (alone,) = trained(tmp_path, 1, 66)
    first, second = trained(tmp_path, 2, 33)
    assert first == second  # every rank holds the same bits: history, multipliers, parameters, evaluation
    for primal in PRIMALS:
        assert_equal(alone[primal]["whole"], first[primal]["whole"])
        assert first[primal]["resumed"] == first[primal]["whole"]  # and after a restart


def test_an_elastic_trial_does_not_depend_on_how_many_workers_there_are(tmp_path: Path) -> None:
    """One worker takes the micro-batches of two, and finds what two find, multipliers included."""
    (alone,) = trained(tmp_path, 1, 32, elastic=True)
    first, second = trained(tmp_path, 2, 32, elastic=True)
    assert first == second
    for primal in PRIMALS:
        assert_equal(alone[primal]["whole"], first[primal]["whole"])


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    """To float tolerance, over 15 steps."""
    assert len(one["history"]) == len(two["history"]) == 15
    for key in ("kl", "lagrangian"):
        np.testing.assert_allclose(
            [r[key] for r in two["history"]], [r[key] for r in one["history"]], rtol=1e-3, atol=1e-4
        )
    for key in ("rewards", "violations", "multipliers"):
        np.testing.assert_allclose(
            [r[key]["x"] for r in two["history"]], [r[key]["x"] for r in one["history"]], rtol=1e-3, atol=1e-4
        )
    assert two["multipliers"]["x"] == pytest.approx(one["multipliers"]["x"], rel=1e-4)
    np.testing.assert_allclose(two["x"], one["x"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(two["kl"], one["kl"], rtol=1e-2, atol=1e-3)
