"""What a trial costs besides training: start-up and hand-over, in ratios measured in one run.

    python benchmarks/trial_startup.py [--skip-gang]

1. Eight single-worker trials: from one trial's last row to the next one's first step, in the reused process.
2. A trivial trial of two workers, thirty small steps and three reports, against the plain pattern that runs the
   same workers: a Tune function that builds a TorchTrainer, with Ray's defaults. The time is that of the whole trial,
   from the connected driver on.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

SPEC = """\
name: startup
model: {mixture: {weights: [1.0], means: [[0.0, 0.0]], covariances: [[[1.0, 0.0], [0.0, 1.0]]]}}
sampling: {steps: 4}
constraints: [{reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: 0.5}]
seeds: SEEDS
training: {steps: 30, batch_per_worker: 16, width: 8}
evaluation: {images: 256, every: 10}
resources: {workers: WORKERS, concurrent_trials: 1}
"""

PLAIN = """\
import sys
import time

import ray
from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from orchestrator.execution.trials.trial import run_rank, task
from orchestrator.plan import make_job, make_plan
from orchestrator.frontier.problems.chosen import exact_problem
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import load_spec


def worker(config):
    context = train.get_context()
    run_rank(config, context.get_world_rank(), context.get_world_size())


def trial(config):
    TorchTrainer(
        worker,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(name=f"plain-{time.time()}", storage_path=config["scratch"],
                                   callbacks=[TuneReportCallback()]),
    ).fit()


storage = sys.argv[2]
plan = make_plan(load_spec(sys.argv[1]))
job = make_job(plan.trials[0], exact_problem(plan.trials[0].config).baseline())
config = task(job, plan.resources, storage, SweepStore(storage, "plain"))
ray.init(num_cpus=3, log_to_driver=False, include_dashboard=True)  # a core for the driver that holds one
began = time.monotonic()
tune.Tuner(trial, param_space=config, run_config=tune.RunConfig(storage_path=storage, verbose=0)).fit()
print("SECONDS", time.monotonic() - began)
"""


def command(folder: Path, seeds: int, workers: int) -> list[str]:
    """Return the command that runs ``seeds`` trivial trials of ``workers`` each."""
    spec = folder / f"spec-{workers}.yaml"
    text = SPEC.replace("SEEDS", str(list(range(seeds)))).replace("WORKERS", str(workers))
    spec.write_text(text)
    storage = str(folder / f"results-{workers}")
    return [
        str(Path(sys.executable).with_name("cdsweep")),
        "run",
        str(spec),
        "--address",
        "local",
        "--storage",
        storage,
    ]


def alone(folder: Path) -> list[float]:
    """Return the seconds between one trial's last row and the next one's start, of eight in one process."""
    subprocess.run(command(folder, 8, 1), check=True, capture_output=True)
    rows = pq.ParquetDataset(folder / "results-1" / "startup" / "trials").read().to_pylist()
    rows.sort(key=lambda row: row["finished_at"])
    return [(after["started_at"] - before["finished_at"]).total_seconds() for before, after in pairwise(rows)]


def plain_gang(folder: Path) -> float:
    """Return the seconds of a trial of two workers with Ray's defaults, from the connected driver on."""
    script = folder / "plain.py"
    script.write_text(PLAIN)
    command(folder, 1, 2)  # writes the spec
    finished = subprocess.run(
        [sys.executable, str(script), str(folder / "spec-2.yaml"), str(folder / "plain")],
        check=True,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    )
    return float(finished.stdout.rsplit("SECONDS", 1)[1])


def own_gang(folder: Path) -> float:
    """Return the same of a cdsweep trial: from the line that names the cluster to the one that ends the trial."""
    process = subprocess.Popen(
        command(folder, 1, 2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr is not None
    moments = {}
    for line in process.stderr:
        for mark in ("Ray:", "[1/1]"):
            if line.startswith(mark):
                moments[mark] = time.monotonic()
    assert process.wait() == 0
    return moments["[1/1]"] - moments["Ray:"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-gang", action="store_true", help="only the first measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gaps = alone(folder)
        print(f"single worker, 8 trials: hand-over after the first, seconds: median {np.median(gaps):.2f}, "
              f"worst {max(gaps):.2f} ({', '.join(f'{gap:.2f}' for gap in gaps)})")  # fmt: skip
        if arguments.skip_gang:
            return
        untuned, ours = plain_gang(folder), own_gang(folder)
        print(
            f"two workers, a trivial trial: {ours:.1f} s, plain Tune plus Train {untuned:.1f} s, "
            f"ratio {ours / untuned:.2f}"
        )


if __name__ == "__main__":
    main()
