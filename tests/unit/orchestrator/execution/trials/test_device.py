"""The device of a process is that of the resources it was given, whatever the machine shows."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

from orchestrator.execution.trials.device import assigned, own
from trainers.config import ModelConfig
from trainers.models.pipeline import load_parts
from trainers.trial_io import LocalTrialIO


@pytest.mark.parametrize(
    ("given", "visible", "device"),
    [
        ([], "0,1", "cpu"),  # gpus_per_worker: 0
        ([], "", "cpu"),
        ([], None, "cpu"),
        ([1], "1", "cuda:0"),  # Ray shows a task its own GPU only, a part of one like a whole
        (["3"], "3", "cuda:0"),  # as text where the variable was set before Ray started
        (["GPU-b"], "GPU-a,GPU-b", "cuda:1"),
        ([2], "0,1,2,3", "cuda:2"),  # a worker of a Train job sees those of the whole job on its node
        ([3, 2], "1,2,3", "cuda:1"),  # two for one worker: the first of them
        ([1], None, "cuda:1"),  # told to leave the variable alone, Ray numbers those of the machine
    ],
)
def test_it_follows_what_ray_assigned(
    monkeypatch: pytest.MonkeyPatch, given: Sequence[int | str], visible: str | None, device: str
) -> None:
    monkeypatch.setattr("ray.get_gpu_ids", lambda: list(given))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert assigned() == device


def test_a_gpu_that_is_hidden_from_its_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [5])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ValueError, match=r"GPU 5, and CUDA_VISIBLE_DEVICES=0,1 hides it"):
        assigned()


def test_a_command_in_the_user_s_own_process_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own() == "cpu"


def test_networks_stay_on_the_cpu_beside_a_gpu_that_is_not_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    parts = load_parts(ModelConfig(pretrained="embedded"), "fp32", LocalTrialIO().device)
    assert parts.device == torch.device("cpu")
    assert next(parts.network.parameters()).device == torch.device("cpu")


def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"resources.gpus_per_worker: this worker has a GPU \(cuda:1\)"):
        load_parts(ModelConfig(pretrained="embedded"), "fp32", "cuda:1")


PROCESSES = """
import json, os, sys
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
from orchestrator.execution.cluster import session
for name, value in session._QUIET.items():
    os.environ.setdefault(name, value)
import ray
from ray import train, tune
from ray.train.torch import TorchTrainer
from orchestrator.execution.trials.device import assigned

ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)

def seen():
    return assigned(), os.environ.get("CUDA_VISIBLE_DEVICES")

class Holder:
    def seen(self):
        return seen()

def held(gpus, count):  # all at a time: each keeps what it has until all have answered
    actors = [ray.remote(num_cpus=1, num_gpus=gpus)(Holder).remote() for _ in range(count)]
    return ray.get([actor.seen.remote() for actor in actors])

found = {
    "none": ray.get(ray.remote(num_cpus=1, num_gpus=0)(seen).remote()),
    "one each": held(1, 2),
    "parts": held(0.5, 4),
}

def worker(config):
    index = train.get_context().get_world_rank()
    with open(f"{config['folder']}/{index}", "w") as file:
        json.dump(seen(), file)

gangs = {"gang": {"CPU": 1, "GPU": 1}, "gang of parts": {"CPU": 1, "GPU": 0.5}}
for name, needs in gangs.items():
    folder = f"{sys.argv[1]}/{name}"
    os.makedirs(folder)
    TorchTrainer(
        worker,
        train_loop_config={"folder": folder},
        # The GPUs are names only: no NCCL between them.
        torch_config=train.torch.TorchConfig(backend="gloo"),
        scaling_config=train.ScalingConfig(num_workers=2, use_gpu="GPU" in needs, resources_per_worker=needs),
        run_config=train.RunConfig(storage_path=folder + "-ray"),
    ).fit()
    found[name] = [json.load(open(f"{folder}/{rank}")) for rank in range(2)]
print(json.dumps(found))
"""


@pytest.mark.exhaustive
@pytest.mark.ray
def test_processes_of_ray_know_their_device(tmp_path: os.PathLike[str]) -> None:
    """On a machine that claims two GPUs: tasks, as samples are drawn by, and the workers of a trial."""
    ran = subprocess.run(
        [sys.executable, "-c", PROCESSES, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["none"] == ["cpu", ""]
    assert sorted(found["one each"]) == [["cuda:0", "0"], ["cuda:0", "1"]]
    assert {device for device, _ in found["parts"]} == {"cuda:0"}
    assert sorted(visible for _, visible in found["parts"]) == ["0", "0", "1", "1"]
    assert sorted(device for device, _ in found["gang"]) == ["cuda:0", "cuda:1"]
    assert {visible for _, visible in found["gang"]} <= {"0,1", "1,0"}
    assert [device for device, _ in found["gang of parts"]] == ["cuda:0", "cuda:0"]
