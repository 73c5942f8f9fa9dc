"""Trials that always fail, by an error or by killing their own process: they end as failed, and block nobody."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.processes import SPEC, Sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PLUGIN = """\
import os, signal
from trainers.duality.optimizers import DualAscent

class Poison(DualAscent):
    steps = 0

    def step(self, violations, rate=1.0):
        super().step(violations, rate)
        self.steps += 1
        if len(violations) and self.steps == 30:  # a weighted trial has none, and stays well
            if self.config.rate > 0.3:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the cup was poisoned")

    def state(self):
        return super().state() | {"steps": [self.steps]}

    def load(self, state):
        super().load(state)
        (self.steps,) = state["steps"]
"""


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a dual optimiser that ends its trial: by an error, at high rates by SIGKILL."""
    folder = tmp_path / "plugin"
    (folder / "poison-1.0.dist-info").mkdir(parents=True)
    (folder / "poison.py").write_text(PLUGIN)
    (folder / "poison-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: poison\nVersion: 1.0\n"
    )
    (folder / "poison-1.0.dist-info" / "entry_points.txt").write_text(
        "[cdsweep.dual_optimizers]\npoison = poison:Poison\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (0.1, "failed in 2 attempts; the last: RuntimeError: the cup was poisoned"),
        pytest.param(
            0.5,
            "lost its process or node 2 times without getting further",
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["error", "killed"],
)
def test_a_poisoned_trial_fails_and_the_others_finish(sweep: Sweep, rate: float, said: str) -> None:
    text = SPEC.replace("{grid: [0.2, 0.4]}", "0.3").replace("steps: 900", "steps: 100")
    text = text.replace("equal, scale: 0.5", "equal, scale: {grid: [0.4, 0.5]}")
    sweep.write(
        f"{text}duals: {{kind: poison, rate: {rate}}}\nresources: {{retries: {{errors: 1, losses: 1}}}}\n"
    )
    done = sweep.run("run", "spec.yaml", "--address", "local")
    assert done.returncode == 3, done.stderr
    rows = pq.read_table(sweep.directory / "trials").to_pylist()
    assert sorted(row["status"] for row in rows) == ["failed", "succeeded", "succeeded"]
    (failed,) = (row for row in rows if row["status"] == "failed")
    assert failed["method"] == "constrained"
    assert said in failed["error"]
    assert failed["steps"] == 20, "what it had reached"
    assert done.stderr.count(f"{failed['trial_id']}  retrying") == 1, done.stderr
    succeeded = [row for row in rows if row["status"] == "succeeded"]
    assert all(row["error"] is None and row["notes"] is None for row in succeeded)
