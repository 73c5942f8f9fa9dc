"""Trials that share a process, by the real command: what each is alone, also where that process is killed."""

from collections.abc import Mapping
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from support import tiny_pipeline
from support.processes import Sweep, family, kill, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = """\
name: {name}
model: {{pretrained: ./pipeline, lora: {{rank: 2}}}}
prompts: {{train: [red circle, blue square, green triangle], evaluate: [red square, blue circle]}}
sampling: {{steps: 3, rest: 0, guidance: 3.0}}
constraints: [{{reward: saturation, at_least: {{grid: [0.2, 0.6]}}, unit: sigma}}]
training: {{steps: {steps}, batch_per_worker: 2, precision: fp32, gradient_checkpointing: false, checkpoint_every: 5}}
convergence: {{tolerance: 1.0e-9}}
evaluation: {{images: 6, every: 5}}
resources: {{pack: {pack}, concurrent_trials: 2}}
"""
TIMES = {"seconds", "images_per_second", "wall_seconds", "gpu_seconds", "started_at", "finished_at"}


def came_to(sweep: Sweep) -> dict[str, Mapping[str, Any]]:
    """Rows, histories and adapters by trial, without times."""
    found = {}
    for path in sorted((sweep.directory / "trials").glob("*.parquet")):
        row = pq.read_table(path).to_pylist()[0]
        history = pq.read_table(sweep.directory / "history" / path.name).to_pylist()
        weights = sweep.directory / row["adapter"] / "pytorch_lora_weights.safetensors"
        found[path.stem] = {
            "row": {key: value for key, value in row.items() if key not in TIMES},
            "history": [{key: value for key, value in step.items() if key not in TIMES} for step in history],
            "adapter": weights.read_bytes(),
        }
    return found


def hosts(pid: int) -> list[psutil.Process]:
    return [process for process in family(pid) if "PackHost" in " ".join(process.cmdline())]


def test_packed_trials_come_to_what_they_are_alone(sweep: Sweep) -> None:
    tiny_pipeline.write(sweep.folder / "pipeline")
    sweep.name = "tiny"
    sweep.write(SPEC.format(name="tiny", steps=20, pack=1))
    done = sweep.run("run", "spec.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    alone = came_to(sweep)
    assert len(alone) == 2

    sweep.name = "packed"
    sweep.write(SPEC.format(name="packed", steps=20, pack=2))
    running = sweep.start("run", "spec.yaml", "--fresh")  # takes nothing over
    wait_for(lambda: len(sweep.checkpointed()) == 2, 120, "two trials with checkpoints")
    found = hosts(running.pid)
    assert len(found) == 1
    kill(found[0].pid)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, out + err
    assert "2 in a process" in err
    beside = came_to(sweep)
    assert beside.keys() == alone.keys()
    for trial_id, one in alone.items():
        other = beside[trial_id]
        assert {k for k, v in one["row"].items() if other["row"][k] != v} <= {"notes"}
        assert "continued from step" in str(other["row"]["notes"])
        assert (other["history"], other["adapter"]) == (one["history"], one["adapter"])
