"""Images per second of primal-dual training with two workers against one, on two cores, one thread each.

    python benchmarks/two_workers.py [--rounds 3] [--steps 12]

The embedded pipeline under three constraints, 8 images per worker and step, gloo between the workers. Both sizes are
run in turn, in fresh processes every round; a rate is that of the whole loop (primal, paired reference, dual, logging,
one checkpoint) from the second step on, without start-up and evaluation. Also checked: the workers of a trial hold
the same multipliers and parameters, bit for bit.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch.distributed as dist
from embedded_problem import job_of, planned, sampled, start_worker
from environment import child_environment

from trainers.config import TrialJob
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO

AIM = 1.6


def prepare(steps: int, batch: int) -> TrialJob:
    """Return the trial, from a few samples of the pretrained model."""
    trial = planned(
        training={"steps": steps, "batch_per_worker": batch, "checkpoint_every": max(2, steps // 2)},
        evaluation={"images": 32, "baseline_images": 64, "every": 1},
    )
    return job_of(trial, sampled(trial.config))


def work(job: TrialJob, rank: int, size: int, store: str) -> dict[str, Any]:
    """Run the trial as one of its workers; returns seconds per step, and digests of what must be alike."""
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    io = LocalTrialIO(rank=rank, world_size=size)
    outcome = run_trial(
        job.model_copy(update={"config": job.config.model_copy(update={"workers": size})}), io
    )
    assert outcome.status == "succeeded", outcome.error
    assert io.checkpoint is not None
    if size > 1:
        dist.destroy_process_group()
    first, last = outcome.history[0], outcome.history[-1]
    multipliers = [record.multipliers for record in outcome.history] + [outcome.multipliers]
    return {
        "seconds": (last.seconds - first.seconds) / (last.step - first.step),
        "multipliers": json.dumps([{k: v.hex() for k, v in row.items()} for row in multipliers]),
        "last": dict(outcome.multipliers),
        # The averaged adapter at the end; parameters, averages and optimiser of the checkpoint on the way.
        "parameters": digest(outcome.adapter) + digest({"state": io.checkpoint["state.safetensors"]}),
    }


def digest(files: Any) -> str:
    """Return the SHA-256 of files."""
    return hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()


def group(job: TrialJob, size: int) -> list[dict[str, Any]]:
    """Run the trial in so many fresh processes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(size, mp_context=get_context("spawn"), initializer=start_worker) as pool,
    ):
        # The first task waits for the other to join, so each has a process of its own.
        tasks = [pool.submit(work, job, rank, size, f"{folder}/store") for rank in range(size)]
        return [task.result() for task in tasks]


def main() -> None:
    """Measure and print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of the optimiser")
    parser.add_argument("--batch", type=int, default=8, help="per worker")
    arguments = parser.parse_args()
    os.environ.update(child_environment() | {"GLOO_SOCKET_IFNAME": "lo"})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start_worker) as pool:
        job = pool.submit(prepare, arguments.steps, arguments.batch).result()

    rates: dict[int, list[float]] = {1: [], 2: []}
    alike = {"multipliers": True, "parameters": True}
    print("round   one worker  two workers   ratio   (images per second)")
    for number in range(1, arguments.rounds + 1):
        for size in rates if number % 2 else reversed(rates):
            workers = group(job, size)
            slowest = max(worker["seconds"] for worker in workers)
            rates[size].append(size * arguments.batch / slowest)
            for key in alike:
                alike[key] &= len({worker[key] for worker in workers}) == 1
        one, two = rates[1][-1], rates[2][-1]
        print(f"{number:5d} {one:12.2f} {two:12.2f} {two / one:7.2f}", flush=True)
    one, two = (statistics.median(rates[size]) for size in (1, 2))
    verdict = "met" if two / one >= AIM else "missed"
    print(f"{'median':>6} {one:11.2f} {two:12.2f} {two / one:7.2f}   (aim {AIM}: {verdict})")
    for key, same in alike.items():
        print(f"{key} of the two workers bit-identical: {'yes' if same else 'NO'}")
    if not all(alike.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
