"""Workers that hold a network between them come to what they come to when each holds it whole."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny_pipeline

pytestmark = pytest.mark.distributed

TESTS = Path(__file__).parents[3]
WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import safetensors.torch, torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from pathlib import Path
from support.models.vivid import vivid_job
from trainers.hosts.alone import Host
from trainers.problem import run_trial
from trainers.hosts.sharded import ShardedHost
from trainers.trial_io import LocalTrialIO

class Watched(ShardedHost):
    def policy(self, config, device):
        found = super().policy(config, device)
        frozen = [p for p in found.parts.network.parameters() if not p.requires_grad]
        held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in frozen)
        self.share = held / sum(p.numel() for p in frozen)
        return found

torch.set_num_threads(1)
folder, store, rank, split, training = Path(sys.argv[2]), *sys.argv[3:5], *map(json.loads, sys.argv[5:])
rank = int(rank)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
# 32 images, by 5: seven calls for one worker, one for the image that is left for the other.
job = vivid_job(folder, 0, 0.5, images=33, workers=2, **{"steps": 3} | training)
job = job.model_copy(update={"config": job.config.model_copy(
    update={"evaluation": job.config.evaluation.model_copy(update={"batch": 5})})})
host = Watched() if split else Host()
port = LocalTrialIO(rank=rank, world_size=2)
outcome = run_trial(job, port, host)
again = run_trial(job, LocalTrialIO(rank=rank, world_size=2, checkpoint=port.checkpoint), host)
assert port.checkpoint is None or again.adapter == outcome.adapter, "resumed bit for bit"
adapter = safetensors.torch.load(outcome.adapter["pytorch_lora_weights.safetensors"])
print(json.dumps({
    "share": getattr(host, "share", 1.0),
    "kl": outcome.evaluation.kl.tolist(),
    "adapter": {name: value.tolist() for name, value in adapter.items()},
}))
dist.destroy_process_group()
"""


def run_workers(directory: Path, *, split: bool, **training: Any) -> list[dict[str, Any]]:
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    arguments = [str(TESTS), str(directory / "pipeline"), str(directory / f"store-{split}")]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments, str(rank), json.dumps(split), json.dumps(training)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [worker.communicate(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(
        errors[-1500:] for _, errors in ends
    )
    return [json.loads(output.splitlines()[-1]) for output, _ in ends]


@pytest.mark.parametrize(
    ("training", "error"),
    [
        ({}, 1e-3),
        ({"gradient_checkpointing": True}, 1e-3),
        ({"precision": "bf16", "steps": 1}, 0.1),  # kernels of another layout round in 8 bits
    ],
)
def test_a_split_network_trains_as_a_whole_one(
    tmp_path: Path, training: dict[str, Any], error: float
) -> None:
    tiny_pipeline.write(tmp_path / "pipeline")
    whole, _ = run_workers(tmp_path, split=False, **training)
    parts = run_workers(tmp_path, split=True, **training)
    for part in parts:
        assert part["share"] == pytest.approx(0.5, abs=0.02)
        assert part["kl"] == pytest.approx(whole["kl"], rel=error)
        if "precision" in training:
            continue  # the first step of Adam goes by signs, which are those of roundings where a gradient is none
        for name, matrix in whole["adapter"].items():
            expected = np.array(matrix)
            assert np.abs(np.array(part["adapter"][name]) - expected).max() <= error * np.abs(expected).max()
