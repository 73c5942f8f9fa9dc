"""Sweeps that grow, as users meet them: exactly the missing trials run, whatever is killed in between."""

import json
import os
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.processes import Sweep, kill, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

SPEC = """\
name: small
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
sampling: {steps: 8}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: right, at_least: {grid: [0.2, 0.4, 0.6]}, unit: sigma}
seeds: [0]
training: {steps: 40, batch_per_worker: 64, width: 16}
convergence: {window: 10}
evaluation: {images: 1024}
"""
GROWN = SPEC.replace("[0.2, 0.4, 0.6]", "[0.1, 0.2, 0.4, 0.5, 0.6]").replace("seeds: [0]", "seeds: [0, 1, 2]")

PLUGIN = """\
class Brittle:
    def __call__(self, samples, prompts=None):
        if samples[:, 0].mean() > 0.9:
            raise RuntimeError("no score that high")
        return samples[:, 0]
"""


def _table(sweep: Sweep) -> dict[str, tuple[datetime, datetime]]:
    """Start and end of every trial that has a row, by id."""
    columns = ["trial_id", "started_at", "finished_at"]
    rows = pq.read_table(sweep.directory / "trials", columns=columns).to_pylist()
    return {row["trial_id"]: (row["started_at"], row["finished_at"]) for row in rows}


def test_exactly_the_missing_trials_run(shared: Sweep) -> None:
    sweep = shared
    sweep.write(SPEC)
    first = sweep.run("run", "spec.yaml")
    assert first.returncode == 0, first.stderr
    before = _table(sweep)
    assert len(before) == 3

    sweep.write(GROWN)
    driver = sweep.start("run", "spec.yaml")
    wait_for(lambda: len(sweep.finished()) >= 6, 200, "three of the trials that are more")
    kill(driver.pid)
    _, err = driver.communicate(timeout=60)
    assert "small grows: 12 trials more than the 3 that are there" in err
    between = _table(sweep)
    assert between.items() >= before.items()
    assert len(between) < 15, "it was killed too late"

    resumed = sweep.run("resume", "small", "--set", "resources.concurrent_trials=1", timeout=500)
    assert resumed.returncode == 0, resumed.stderr
    after = _table(sweep)
    assert after.items() >= between.items(), "no trial that had finished was run again"
    assert len(after) == 15
    planned = {
        trial["trial_id"] for trial in json.loads((sweep.directory / "plan.json").read_text())["trials"]
    }
    assert after.keys() == planned

    # Provenance of every trial, and the report's word for it.
    for row in pq.read_table(sweep.directory / "trials").to_pylist():
        made = json.loads(row["provenance"])
        assert {"cdsweep", "torch", "ray", "python", "host", "device", "precision", "sampler"} <= made.keys()
        assert (made["precision"], made["sampler"]) == ("fp32", "8 steps, eta 1")
    assert '"sampler":"8 steps, eta 1"' in (sweep.directory / "report.html").read_text(encoding="utf-8")

    for arguments, said in (
        (["resume", "small", "--set", "training.steps=41"], "resume takes resources.KEY=VALUE alone"),
        (["resume", "small", "--set", "resources.workers=2"], "resources.workers: 1 there, 2 here"),
        (["run", "spec.yaml", "--set", "seeds=[0, 1]"], "seeds: [0, 1, 2] there, [0, 1] here"),
        (["run", "spec.yaml", "--set", "training.steps=41"], "training.steps: 40 there, 41 here"),
    ):
        refused = sweep.ask(*arguments)
        assert refused.returncode == 2, refused.stderr
        assert said in refused.stderr

    # The same trials under another name are taken over, and said; nothing is trained.
    other = sweep.run("run", "spec.yaml", "--name", "again")
    assert other.returncode == 0, other.stderr
    assert "taken over from small: 15 equal trials" in other.stderr
    sweep.name = "again"
    assert _table(sweep) == after


@pytest.fixture
def brittle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a reward that fails where it is high; returns its module."""
    folder = tmp_path / "plugin"
    info = folder / "brittle-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "brittle.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brittle\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cdsweep.rewards]\nbrittle = brittle:Brittle\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder / "brittle.py"


@pytest.mark.exhaustive
@pytest.mark.xdist_group("ray")
def test_trials_that_failed_are_run_again_once_the_reward_is_mended(sweep: Sweep, brittle: Path) -> None:
    text = SPEC.replace("{linear: {direction: [1.0]}}, name: right", "brittle").replace(
        "[0.2, 0.4, 0.6]", "[0.1, 1.4]"
    )
    sweep.write(
        text.replace("steps: 40, batch_per_worker: 64", "steps: 150, batch_per_worker: 512")
        + "resources: {retries: {errors: 0}}\n"
    )
    first = sweep.run("run", "spec.yaml", "--address", "local")
    assert first.returncode == 3, first.stderr
    rows = {row["status"]: row for row in pq.read_table(sweep.directory / "trials").to_pylist()}
    assert rows.keys() == {"failed", "succeeded"}, rows
    assert "no score that high" in rows["failed"]["error"]

    again = sweep.run("resume", "small", "--address", "local")
    assert again.returncode == 3, "what failed is not tried again unless asked"
    brittle.write_text(PLUGIN.replace("> 0.9", "> 90"))
    refused = sweep.run("resume", "small", "--address", "local")
    assert refused.returncode == 2
    assert "--retry failed" in refused.stderr
    mended = sweep.run("resume", "small", "--retry", "failed", "--address", "local")
    assert mended.returncode == 0, mended.stderr
    assert f"1 failed trials are tried again: {rows['failed']['trial_id']}" in mended.stderr
    assert "rewards.brittle has changed: they have other ids now" in mended.stderr
    now = pq.read_table(sweep.directory / "trials").to_pylist()
    assert [row["status"] for row in now] == ["succeeded"] * 2
    assert rows["succeeded"] in now, "what had finished is as it was"
    assert "no trial is failed" in sweep.run("resume", "small", "--retry", "failed").stderr
