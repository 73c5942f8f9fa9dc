"""Rounds of chaos: during a sweep on three nodes a worker, a node and the driver are killed at random moments.

    cd tests && python -m support.chaos --rounds 20 [--seed 7]

Every round kills all three; one that finished before its last kill found anything to strike is replaced by another.
A round has passed when, after ``cdsweep resume`` where the driver died, the result set is complete, no trial is
there twice, no finished row was written again, every trial that was interrupted after a checkpoint continued from
one, and every number equals that of a run in one undisturbed process.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from support.clusters.nodes import Nodes
from support.processes import SPEC, Sweep, kill
from support.undisturbed import Numbers, undisturbed

_STEPS = 300
CHAOS_SPEC = (
    SPEC.replace("{grid: [0.2, 0.4]}", "{grid: [0.2, 0.3, 0.4]}")
    .replace("seeds: [0]", "seeds: [0, 1]")
    .replace("steps: 900", f"steps: {_STEPS}")
)
"""Eight trials: three thresholds and one weighting, two seeds."""

_ROUND_SECONDS, _STALL_SECONDS = 480.0, 120.0
_BEATS = 3.5
"""Seconds between two heartbeats of a driver, and a little more."""
_LAST_MOMENT = 0.6
"""Share of the sweep that is done when the last kill is due: with its pause, early enough to find trials running."""


class MissedError(Exception):
    """A round's sweep had finished before everything was killed."""


class BrokenRoundError(AssertionError):
    """A round did not end as it must."""


@dataclass
class Round:
    """One round, and what happened in it."""

    seed: int
    sweep: Sweep
    nodes: Nodes
    kills: list[str] = field(default_factory=list)
    interrupted: dict[str, float] = field(default_factory=dict)
    """Trials that had a checkpoint when they were killed, and when."""
    resumed: int = 0

    def run(self) -> None:
        """Run the sweep to its end, with all three kills.

        Raises:
            BrokenRoundError: It did not end as it must.
            MissedError: There was nothing left to kill.
        """
        chance = random.Random(self.seed)  # noqa: S311 - to be repeated, not to hide
        moments = sorted(chance.uniform(0.03, _LAST_MOMENT) for _ in range(3))
        what = chance.sample(("worker", "node", "driver"), 3)
        before = self._mtimes()
        end = time.monotonic() + _ROUND_SECONDS
        driver = self._drive("run", "spec.yaml", "--yes")
        for moment, victim in zip(moments, what, strict=True):
            driver = self._wait_for_share(moment, driver, end)
            time.sleep(chance.uniform(0.0, _BEATS))
            before = self._mtimes() | before
            if self._share() >= 1.0:
                raise MissedError(f"{victim}: everything had finished")
            if victim == "worker":
                self._kill_worker(chance)
            elif victim == "node":
                self._kill_node(chance)
            else:
                self._note_interrupted({trial["trial_id"] for trial in self.sweep.state().get("running", ())})
                kill(driver.pid)
                driver.wait(30)
                self.kills.append(f"driver at {self._share():.0%}")
                time.sleep(chance.uniform(0.0, 2.0))
                driver = self._drive("resume", "small")
                self.resumed += 1
        self._finish(driver, end)
        after = self._mtimes()
        again = [name for name in before if after.get(name) != before[name]]
        if again:
            raise BrokenRoundError(f"finished trials were written again: {again}")

    def _drive(self, *arguments: str) -> "subprocess.Popen[str]":
        log = (self.sweep.folder / f"driver-{len(self.sweep.processes)}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-c", "from orchestrator.cli import app; app()", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.sweep.folder,
            start_new_session=True,
            env={**os.environ, **self.nodes.environment, "OMP_NUM_THREADS": "1"},
        )
        log.close()
        self.sweep.processes.append(process)
        return process

    def _share(self) -> float:
        """How much of the sweep is done, 0 to 1, as far as its files tell."""
        finished = self.sweep.finished()
        running = sum(
            trial.get("step", 0) / _STEPS
            for trial in self.sweep.state().get("running", ())
            if trial["trial_id"] not in finished
        )
        return (len(finished) + running) / 8

    def _wait_for_share(
        self, share: float, driver: "subprocess.Popen[str]", end: float
    ) -> "subprocess.Popen[str]":
        while self._share() < share:
            if driver.poll() is not None:
                if driver.returncode == 0:
                    raise MissedError("the driver had finished")
                raise BrokenRoundError(f"the driver ended by itself with {driver.returncode}: {self.log()}")
            if time.monotonic() > end:
                raise BrokenRoundError(
                    f"only {self._share():.0%} done after {_ROUND_SECONDS:g} s: {self.log()}"
                )
            time.sleep(0.1)
        return driver

    def _finish(self, driver: "subprocess.Popen[str]", end: float) -> None:
        try:
            code = driver.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise BrokenRoundError(
                f"not done after {_ROUND_SECONDS:g} s, {self._share():.0%}: {self.log()}"
            ) from None
        if code != 0:
            raise BrokenRoundError(f"the last driver ended with {code}: {self.log()}")

    def _kill_worker(self, chance: random.Random) -> None:
        end = time.monotonic() + _STALL_SECONDS
        while not (running := self._running()):  # those of a dead driver or node are still to be replaced
            if self._share() >= 1.0:
                raise MissedError("worker: everything had finished")
            if time.monotonic() > end:
                raise BrokenRoundError(f"nothing ran for {_STALL_SECONDS:g} s: {self.log()}")
            time.sleep(0.2)
        trial_id, pid = chance.choice(sorted(running.items()))
        self._note_interrupted({trial_id})
        kill(pid)
        self.kills.append(f"worker at {self._share():.0%}")

    def _kill_node(self, chance: random.Random) -> None:
        node = chance.choice(
            self.nodes.nodes[1:]
        )  # not the head: that is the end of Ray, and has a test of its own
        there = node.workers()
        self._note_interrupted({trial_id for trial_id, pid in self._running().items() if pid in there})
        self.nodes.kill(node)
        replaced = chance.random() < 0.5
        if replaced:
            self.nodes.add(1)
        self.kills.append(f"node at {self._share():.0%}{', replaced' if replaced else ''}")

    def _running(self) -> dict[str, int]:
        """Running trials and their processes."""
        finished = self.sweep.finished()
        return {
            trial["trial_id"]: trial["pid"]
            for trial in self.sweep.state().get("running", ())
            if "pid" in trial and psutil.pid_exists(trial["pid"]) and trial["trial_id"] not in finished
        }

    def _note_interrupted(self, trials: set[str]) -> None:
        now = time.time()
        self.interrupted |= dict.fromkeys(trials & self.sweep.checkpointed(), now)

    def _mtimes(self) -> dict[str, int]:
        return {
            path.name: path.stat().st_mtime_ns for path in (self.sweep.directory / "trials").glob("*.parquet")
        }

    def log(self) -> str:
        """The end of what the drivers said."""
        logs = sorted(self.sweep.folder.glob("driver-*.log"))
        return "\n".join(f"{path.name}:\n{path.read_text()[-2500:]}" for path in logs)

    def check(self, expected: Numbers) -> None:
        """Compare the results with those of an undisturbed run."""
        rows = pq.read_table(self.sweep.directory / "trials").to_pylist()
        if sorted(row["trial_id"] for row in rows) != sorted(expected):
            raise BrokenRoundError(f"{len(rows)} rows for {len(expected)} trials: {self.log()}")
        for row in rows:
            trial_id = row["trial_id"]
            if row["status"] != "succeeded":
                raise BrokenRoundError(f"{trial_id} {row['status']}: {row['error']}; {self.log()}")
            for key, value in expected[trial_id].items():
                if abs(row[key] - value) > 1e-6 * max(1.0, abs(value)):
                    raise BrokenRoundError(f"{trial_id} {key}: {row[key]!r}, undisturbed {value!r}")
            steps = pq.read_table(self.sweep.directory / "history" / f"{trial_id}.parquet")[
                "step"
            ].to_pylist()
            if steps != sorted(set(steps)) or steps[-1] != row["steps"]:
                raise BrokenRoundError(f"{trial_id}: logged steps are missing or there twice")
            struck = self.interrupted.get(trial_id)
            # One that wrote its row in the moment of the kill had nothing left to continue.
            late = struck is not None and row["finished_at"].timestamp() > struck + 1.0
            if late and "continued from step" not in (row["notes"] or ""):
                raise BrokenRoundError(f"{trial_id} began anew from notes {row['notes']!r}; {self.log()}")


@contextmanager
def one_round(folder: Path, nodes: Nodes, seed: int) -> Iterator[Round]:
    """A sweep in a folder of its own; its processes end with the block, and the cluster has three nodes again."""
    folder.mkdir(parents=True)
    sweep = Sweep(folder)
    sweep.write(CHAOS_SPEC)
    try:
        yield Round(seed, sweep, nodes)
    finally:
        for process in sweep.processes:
            process.kill()
            process.wait(30)
        nodes.refill()


def main() -> int:
    """Run rounds and print what happened in each; returns 1 if one broke."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the first round; by default a random one")
    arguments = parser.parse_args()
    first = seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    broken = passed = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, Nodes() as nodes:
        spec = Path(name) / "spec.yaml"
        spec.write_text(CHAOS_SPEC)
        expected = undisturbed(spec)
        while broken + passed < arguments.rounds:
            began = time.monotonic()
            with one_round(Path(name) / str(seed), nodes, seed) as this:
                try:
                    this.run()
                    this.check(expected)
                    passed += 1
                    verdict = "ok"
                except MissedError as missed:
                    verdict = f"does not count: {missed}"
                except BrokenRoundError as error:
                    broken += 1
                    verdict = f"BROKEN: {error}"
            print(  # noqa: T201 - a command
                f"seed {seed}: {time.monotonic() - began:3.0f} s, killed {'; '.join(this.kills)}; "
                f"{len(this.interrupted)} trial(s) interrupted after a checkpoint; {verdict}",
                flush=True,
            )
            seed += 1
    print(f"{passed} of {arguments.rounds} rounds passed, seeds {first} to {seed - 1}")  # noqa: T201 - the same
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
