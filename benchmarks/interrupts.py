"""Ctrl-C at random moments of every phase: how soon it is answered, how soon the process is gone, what is repeated.

    python benchmarks/interrupts.py [--rounds 4] [--seed 0]

Each round interrupts a sweep of the embedded pipeline, with a search of weights and a tracker, at a random moment of
each phase: while it connects to Ray, samples the pretrained model, sets searches and trackers up, trains, evaluates,
and writes the summary. In the end it is resumed without a disturbance. Printed are seconds from the signal to the line
that answers it and to the end of the process.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

CDSWEEP = str(Path(sys.executable).with_name("cdsweep"))
STEPS = 6
SPEC = f"""\
name: interrupted
model: {{pretrained: embedded, lora: {{rank: 2}}}}
sampling: {{steps: 4, rest: 1}}
prompts: {{train: shapes-tune, evaluate: shapes-check}}
constraints: [{{reward: saturation, at_least: {{grid: [0.1, 0.2]}}, unit: sigma}}]
methods: [constrained, {{weighted: {{search: {{sampler: random, trials: 1, low: 0.1, high: 1.0}}}}}}]
training: {{steps: {STEPS}, batch_per_worker: 4, checkpoint_every: 2}}
evaluation: {{images: 32, baseline_images: 64, every: 1}}
resources: {{concurrent_trials: 1}}
trackers: [tensorboard]
"""


class Driver:
    """A command of cdsweep, and the lines that it has printed so far with their times."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        """Start it."""
        self.lines: list[tuple[float, str]] = []
        self.last = 0.0
        """Seconds from the signal to the last line."""
        self.process = subprocess.Popen(
            [CDSWEEP, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    def said(self, text: str) -> bool:
        """Whether a line has it."""
        return any(text in line for _, line in self.lines)

    def interrupt(self) -> tuple[float, float, int]:
        """Return seconds to the answer and to the end, and the exit code."""
        struck = time.monotonic()
        os.kill(self.process.pid, signal.SIGINT)
        code = self.process.wait(600)
        gone = time.monotonic() - struck
        self._reader.join()
        answers = [
            at - struck
            for at, line in self.lines
            if at >= struck and ("stopping" in line or "interrupted" in line)
        ]
        self.last = max((at - struck for at, _ in self.lines), default=0.0)
        return (min(answers) if answers else float("inf")), gone, code


def phases(sweep: Path) -> dict[str, tuple[Callable[[Driver], bool], float]]:
    """Return what begins each phase, and how long after it a signal still falls into it, seconds."""

    def steps() -> list[int]:
        try:
            told = json.loads((sweep / "journal.json").read_text())
        except (OSError, ValueError):  # there is none yet
            return []
        return [int(trial.get("step", 0)) for trial in told["running"]]

    return {
        "connecting": (lambda driver: driver.said("plan of"), 3.0),
        "sampling": (lambda driver: driver.said("sampling the pretrained"), 3.0),
        "setting up": (lambda _: (sweep / "baseline.json").exists(), 2.0),
        "training": (lambda _: any((sweep / "checkpoints").glob("*/*/manifest.json")), 4.0),
        "evaluating": (lambda _: any(step >= STEPS - 1 for step in steps()), 2.0),
        "summing up": (lambda _: len([*(sweep / "trials").glob("*.parquet")]) >= 3, 1.0),
    }


def rows(sweep: Path) -> dict[str, int]:
    """Return when each row was written, by file name."""
    return {path.name: path.stat().st_mtime_ns for path in (sweep / "trials").glob("*.parquet")}


def moment(folder: Path, name: str, phase: str, chance: random.Random) -> tuple[float, float, int] | None:
    """Run or go on until the phase, and interrupt at a random moment of it; None where the run was over before."""
    sweep = folder / "results" / name
    begun, width = phases(sweep)[phase]
    driver = Driver(folder, *("run", "spec.yaml", "--name", name, "--address", "local", "--yes", "--fresh")
                    if not (sweep / "baseline.json").exists() else ("resume", name, "--address", "local"))  # fmt: skip
    while driver.process.poll() is None and not begun(driver):
        time.sleep(0.02)
    time.sleep(chance.uniform(0.0, width))
    if driver.process.poll() is not None:
        return None
    return driver.interrupt()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)  # noqa: S311 - moments, no secrets
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "spec.yaml").write_text(SPEC)
        for number in range(asked.rounds):
            name = f"round-{number}"
            sweep = folder / "results" / name
            for phase in phases(sweep):
                before = rows(sweep)
                found = moment(folder, name, phase, chance)
                kept = all(rows(sweep).get(file) == at for file, at in before.items())
                told = (
                    "over before"
                    if found is None
                    else f"answered {found[0]:5.2f} s, gone {found[1]:5.2f} s, exit {found[2]}"
                )
                print(f"{name} {phase:12} {told}, rows kept: {kept}", flush=True)
            before = rows(sweep)
            done = subprocess.run(
                [CDSWEEP, "resume", name, "--address", "local"], cwd=folder, check=True, capture_output=True
            )
            after = rows(sweep)
            statuses = [
                pq.read_table(path)["status"][0].as_py() for path in (sweep / "trials").glob("*.parquet")
            ]
            again = sum(after[file] != at for file, at in before.items())
            print(f"{name} resumed: exit {done.returncode}, {statuses}, {again} repeated", flush=True)


if __name__ == "__main__":
    main()
