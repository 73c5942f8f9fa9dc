"""Small sweeps, and the real command run on them: in processes of their own, or in this one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from typer.testing import CliRunner

from orchestrator.cli import app

T = TypeVar("T")

CDSWEEP = str(Path(sys.executable).with_name("cdsweep"))

SPEC = """\
name: small
model:
  mixture:
    weights: [0.6, 0.4]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
sampling: {steps: 24}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.2, 0.4]}, unit: sigma}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: 0.1, unit: sigma}
methods: [constrained, {weighted: {weights: equal, scale: 0.5}}]
seeds: [0]
# No early end: the tests need time to strike.
training: {steps: 900, batch_per_worker: 64, width: 32, checkpoint_every: 20}
convergence: {tolerance: 1.0e-9}
evaluation: {images: 1024, every: 20}
"""


@dataclass
class Sweep:
    """A spec file, its storage, and the commands run on it."""

    folder: Path
    name: str = "small"
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    orphans: list[psutil.Process] = field(default_factory=list)
    """Descendants of a process that a test killed."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of its processes, beyond that of the tests."""

    @property
    def spec(self) -> Path:
        return self.folder / "spec.yaml"

    @property
    def storage(self) -> Path:
        return self.folder / "results"

    @property
    def directory(self) -> Path:
        return self.storage / self.name

    def write(self, text: str = SPEC) -> None:
        self.spec.write_text(text, encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [CDSWEEP, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            start_new_session=True,
            env={**os.environ, **self.environment, "OMP_NUM_THREADS": "1"},
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command that starts nothing in this process, which has paid for its imports already."""
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(app, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    def state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.directory / "journal.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state

    def orphaned_trials(self) -> list[psutil.Process]:
        """Trial processes among the orphans that still run; agents of Ray may linger for a minute."""
        pids = {trial.get("pid") for trial in self.state().get("running", ())}
        return [orphan for orphan in self.orphans if orphan.pid in pids and alive(orphan)]

    def finished(self) -> set[str]:
        return {path.stem for path in (self.directory / "trials").glob("*.parquet")}

    def checkpointed(self) -> set[str]:
        return {path.parent.parent.name for path in self.directory.glob("checkpoints/*/*/manifest.json")}


def family(pid: int) -> list[psutil.Process]:
    """All descendants of a process; none if it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(look: Callable[[], T], seconds: float, what: str) -> T:
    """Poll until ``look()`` is true; returns its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := look():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
