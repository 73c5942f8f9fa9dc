"""Workers that hold a network between them come to what they come to when each holds it whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny_pipeline
from support.gloo import run_workers

pytestmark = pytest.mark.distributed

TESTS = Path(__file__).parents[3]
WORKER = """
import safetensors.torch
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor
from pathlib import Path
tests, folder, split, training = given
sys.path.insert(0, tests)
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

# Groups of parameters that are whole at a time.
whole, most = set(), 0
together, apart = FSDPParamGroup.wait_for_unshard, FSDPParamGroup.reshard

def put_together(group):
    global most
    together(group)
    whole.add(group)
    most = max(most, len(whole))

def take_apart(group):
    apart(group)
    if not group.is_unsharded:
        whole.discard(group)

FSDPParamGroup.wait_for_unshard, FSDPParamGroup.reshard = put_together, take_apart

# 32 images, by 5: seven calls for one worker, one for the image that is left for the other.
job = vivid_job(Path(folder), 0, 0.5, images=33, workers=2, **{"steps": 3} | training)
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
    "whole": most,
    "kl": outcome.evaluation.kl.tolist(),
    "adapter": {name: value.tolist() for name, value in adapter.items()},
}))
"""


AT_A_TIME = 3
"""Of the six groups of this network: two blocks, and what is in none."""


def trained(directory: Path, *, split: bool, **training: Any) -> list[dict[str, Any]]:
    """Run two workers; returns what each saw."""
    meeting = directory / f"split-{split}"
    meeting.mkdir()
    return run_workers(WORKER, meeting, 2, str(TESTS), str(directory / "pipeline"), split, training)


@pytest.mark.parametrize(
    ("training", "error"),
    [
        pytest.param({}, 1e-3, marks=pytest.mark.exhaustive),
        ({"gradient_checkpointing": True}, 1e-3),
        # Kernels of another layout round in 8 bits.
        pytest.param({"precision": "bf16", "steps": 1}, 0.1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_split_network_trains_as_a_whole_one(
    tmp_path: Path, training: dict[str, Any], error: float
) -> None:
    tiny_pipeline.write(tmp_path / "pipeline")
    whole, _ = trained(tmp_path, split=False, **training)
    parts = trained(tmp_path, split=True, **training)
    for part in parts:
        assert part["share"] == pytest.approx(0.5, abs=0.02)
        assert part["whole"] <= AT_A_TIME, "checkpointing puts no more of it together"
        assert part["kl"] == pytest.approx(whole["kl"], rel=error)
        if "precision" in training:
            continue  # the first step of Adam goes by signs, which are those of roundings where a gradient is none
        for name, matrix in whole["adapter"].items():
            expected = np.array(matrix)
            assert np.abs(np.array(part["adapter"][name]) - expected).max() <= error * np.abs(expected).max()
