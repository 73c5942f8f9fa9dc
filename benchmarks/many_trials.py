"""A sweep of very many trivial trials: what the driver needs of memory and of time for each.

    python benchmarks/many_trials.py [--trials 500]

Every trial is two steps on a mixture and a small evaluation, so nearly all of the time is the sweep's own. Memory
is the driver's resident set, looked at twice a second; whether it is flat says its slope after the first fifth.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

SPEC = """\
name: many
model: {mixture: {weights: [1.0], means: [[0.0, 0.0]], covariances: [[[1.0, 0.0], [0.0, 1.0]]]}}
sampling: {steps: 2}
constraints: [{reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: GRID}}]
seeds: SEEDS
training: {steps: 2, batch_per_worker: 4, width: 4}
evaluation: {images: 16, every: 2}
"""
_THRESHOLDS = 10


def run(trials: int, folder: Path) -> dict[str, float]:
    """Run the sweep by the real command; returns the figures."""
    spec = folder / "spec.yaml"
    grid = [round(0.05 + 0.05 * number, 2) for number in range(_THRESHOLDS)]
    seeds = list(range(-(-trials // _THRESHOLDS)))
    spec.write_text(SPEC.replace("GRID", str(grid)).replace("SEEDS", str(seeds)))
    command = [sys.executable, "-c", "from orchestrator.cli import app; app()", "run", str(spec)]
    began = time.monotonic()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--yes", "--address", "local", "--storage", str(folder), "--json"],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    driver, memory, done = psutil.Process(process.pid), [], []
    rows = folder / "many" / "trials"
    while process.poll() is None:
        time.sleep(0.5)
        try:
            memory.append(driver.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            break
        done.append(sum(1 for _ in rows.glob("*.parquet")) if rows.is_dir() else 0)
    code, wall = process.wait(), time.monotonic() - began
    if code != 0:
        raise SystemExit(f"the sweep ended with {code}:\n{(folder / 'log').read_text()[-2000:]}")
    return figures(pq.read_table(rows).to_pylist(), np.array(done), np.array(memory), wall)


def figures(
    rows: list[dict[str, object]], done: np.ndarray, memory: np.ndarray, wall: float
) -> dict[str, float]:
    """Return what to print: seconds per trial early and late, and the driver's memory."""
    count = len(rows)
    ended = np.sort([row["finished_at"].timestamp() for row in rows])  # type: ignore[attr-defined]
    fifth = max(1, count // 5)
    late = (done >= fifth) & (done < count)
    slope = float(np.polyfit(done[late], memory[late], 1)[0]) if late.sum() > 2 else 0.0
    return {
        "trials": count,
        "succeeded": sum(row["status"] == "succeeded" for row in rows),
        "wall_seconds": wall,
        "seconds_per_trial": float(ended[-1] - ended[0]) / (count - 1),
        "first_fifth": float(ended[fifth] - ended[0]) / fifth,
        "last_fifth": float(ended[-1] - ended[-1 - fifth]) / fifth,
        "training_seconds": float(np.mean([row["wall_seconds"] for row in rows])),
        "driver_mb_at_a_fifth": float(np.median(memory[late][:4])) if late.any() else float(memory[-1]),
        "driver_mb_at_the_end": float(np.median(memory[late][-4:])) if late.any() else float(memory[-1]),
        "driver_kb_per_trial": 1024 * slope,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = run(arguments.trials, Path(name))
    if arguments.json:
        print(json.dumps(found))
        return
    print(
        f"{found['succeeded']} of {found['trials']} trials in {found['wall_seconds']:.0f} s: "
        f"{found['seconds_per_trial']:.3f} s per trial (first fifth {found['first_fifth']:.3f}, last fifth "
        f"{found['last_fifth']:.3f}), of which {found['training_seconds']:.3f} s are training\n"
        f"driver: {found['driver_mb_at_a_fifth']:.0f} MB after a fifth, {found['driver_mb_at_the_end']:.0f} MB at the "
        f"end, {found['driver_kb_per_trial']:.0f} KB per trial"
    )


if __name__ == "__main__":
    main()
