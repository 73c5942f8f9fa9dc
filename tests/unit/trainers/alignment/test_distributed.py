"""Two gloo workers against one with the doubled batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.distributed

WORKER = """
import dataclasses, faulthandler, hashlib, json, sys
import torch
import torch.distributed as dist
from trainers.problem import run_trial
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO

class Recorder(LocalTrialIO):
    def save(self, step, files, history):
        super().save(step, files, history)
        saved[step] = dict(files)

faulthandler.enable()
torch.set_num_threads(1)
saved = {}
store, rank, size, arguments = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)

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
for primal, parameters in json.loads(sys.argv[5]).items():
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


def run_workers(directory: Path, size: int, batch: int, *, elastic: bool = False) -> list[dict[str, Any]]:
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
    store = directory / f"store-{size}"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WORKER,
                str(store),
                str(rank),
                str(size),
                json.dumps(arguments),
                json.dumps(PRIMALS),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        ends = [worker.communicate(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * size, "\n".join(
        errors[-1500:] for _, errors in ends
    )
    return [json.loads(output.splitlines()[-1]) for output, _ in ends]


def test_two_workers_are_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """33 samples per worker: an antithetic pair is split between the two. Every primal estimator."""
    (alone,) = run_workers(tmp_path, 1, 66)
    first, second = run_workers(tmp_path, 2, 33)
    assert first == second  # every rank holds the same bits: history, multipliers, parameters, evaluation
    for primal in PRIMALS:
        assert_equal(alone[primal]["whole"], first[primal]["whole"])
        assert first[primal]["resumed"] == first[primal]["whole"]  # and after a restart


def test_an_elastic_trial_does_not_depend_on_how_many_workers_there_are(tmp_path: Path) -> None:
    """One worker takes the micro-batches of two, and finds what two find, multipliers included."""
    (alone,) = run_workers(tmp_path, 1, 32, elastic=True)
    first, second = run_workers(tmp_path, 2, 32, elastic=True)
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
