"""Two drivers of one sweep: one runs it, the other is refused, and who was followed writes nothing more."""

import json
import os
import signal

import pyarrow.parquet as pq
import pytest
from support.object_store import BUCKET, ObjectStore
from support.processes import Sweep, wait_for
from support.tiers import exhaustive

from orchestrator.results.store import SweepStore

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(900)]

SPEC = """\
name: small
model:
  mixture:
    weights: [0.6, 0.4]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
sampling: {steps: 8}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.2, 0.4]}, unit: sigma}
methods: [constrained]
seeds: [0]
training: {steps: 60, batch_per_worker: 32, width: 16, checkpoint_every: 20}
evaluation: {images: 128, every: 20}
"""


@pytest.mark.parametrize("kind", [*exhaustive("local"), "s3"])
def test_two_terminals_one_sweep(sweep: Sweep, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = ObjectStore()
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    storage = f"s3://{BUCKET}/results" if kind == "s3" else str(sweep.storage)
    sweep.write(f"{SPEC}storage: {storage}\n")
    try:
        both = [sweep.start("run", "spec.yaml", "--address", "local", "--yes") for _ in range(2)]
        said = [process.communicate(timeout=400)[1] for process in both]
        codes = [process.returncode for process in both]
        assert sorted(codes) == [0, 2], said
        ran, refused = codes.index(0), codes.index(2)
        assert f"(process {both[ran].pid}) since 20" in said[refused]
        assert "is running already" in said[refused]
        assert "Ray:" not in said[refused], "it was refused before Ray was started"
        store = SweepStore(storage, "small")
        assert store.trials()["status"].to_pylist() == ["succeeded"] * 2
        for trial_id in store.finished():
            steps = store.history(trial_id)["step"].to_pylist()
            assert steps == sorted(set(steps)), "trained once"
    finally:
        objects.close()


@pytest.mark.exhaustive
def test_a_driver_that_was_paused_and_followed_writes_nothing_more(sweep: Sweep) -> None:
    old = sweep.start("run", "spec.yaml", "--address", "local")
    wait_for(lambda: sweep.checkpointed() - sweep.finished(), 180, "a first checkpoint")
    os.kill(old.pid, signal.SIGSTOP)
    new = sweep.run("resume", "small", "--address", "local", timeout=500)
    assert new.returncode == 0, new.stderr
    assert f"(process {old.pid})" in new.stderr, "it said whom it watched"
    rows = {path: path.stat().st_mtime_ns for path in (sweep.directory / "trials").glob("*.parquet")}
    before = {path: path.stat().st_mtime_ns for path in sweep.directory.rglob("*") if path.is_file()}
    os.kill(old.pid, signal.SIGCONT)
    _, err = old.communicate(timeout=120)
    assert old.returncode in (1, 130), err  # 130 where Ray takes longer to end than a driver may
    assert (
        f"is driven by {json.loads(max((sweep.directory / 'lease').glob('*.json')).read_text())['owner']}"
        in err
    )
    assert {path: path.stat().st_mtime_ns for path in sweep.directory.rglob("*") if path.is_file()} == before
    assert {row["status"] for path in rows for row in pq.read_table(path).to_pylist()} == {"succeeded"}
