"""A sweep whose results are in a bucket, and a bucket that is out of reach for a while in the middle of it."""

import json
import time
from collections.abc import Iterator

import pytest
from support.object_store import BUCKET, ObjectStore
from support.processes import Sweep, wait_for
from support.undisturbed import undisturbed

from orchestrator.results.leases import LEASE_SECONDS
from orchestrator.results.store import SweepStore

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

OUTAGE_SECONDS = LEASE_SECONDS + 10.0
"""Longer than a driver that says nothing holds its lease, and than the longest wait between two attempts."""
STORAGE = f"s3://{BUCKET}/results"

SPEC = f"""\
name: small
model:
  mixture:
    weights: [0.6, 0.4]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
sampling: {{steps: 16}}
constraints:
  - {{reward: {{linear: {{direction: [1.0, 0.0]}}}}, name: right, at_least: {{grid: [0.2, 0.4]}}, unit: sigma}}
methods: [constrained]
seeds: [0]
# No early end: the outage needs time to strike.
training: {{steps: 200, batch_per_worker: 64, width: 32, checkpoint_every: 20}}
convergence: {{tolerance: 1.0e-9}}
evaluation: {{images: 512, every: 20}}
storage: {STORAGE}
"""


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A bucket that keeps every version of an object, so that what is written twice shows."""
    made = ObjectStore()
    made.client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


def test_an_outage_loses_nothing_and_repeats_nothing(sweep: Sweep, objects: ObjectStore) -> None:
    sweep.write(SPEC)
    process = sweep.start("run", "spec.yaml", "--address", "local")

    def saves() -> list[str]:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        return [key for key in objects.keys("results/small/checkpoints") if key.endswith("manifest.json")]

    wait_for(saves, 180, "a first checkpoint")
    with objects.wire.refusing():
        time.sleep(OUTAGE_SECONDS)
        assert process.poll() is None, "the run ended in the outage"
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "trying for" in err, "the outage was not noticed"
    assert "the storage answers again" in err
    assert "retrying" not in err, "a trial was started again"

    expected = undisturbed(sweep.spec)
    store = SweepStore(STORAGE, "small")
    rows = {row["trial_id"]: row for row in store.trials().to_pylist()}
    assert store.problems == []
    assert rows.keys() == expected.keys()
    for trial_id, numbers in expected.items():
        assert rows[trial_id]["status"] == "succeeded", rows[trial_id]["error"]
        assert {key: rows[trial_id][key] for key in numbers} == pytest.approx(numbers, rel=1e-6)
        steps = store.history(trial_id)["step"].to_pylist()
        assert steps == sorted(set(steps)), "the history has every logged step once"
    versions = objects.client.list_object_versions(Bucket=BUCKET, Prefix="results/small/trials/")["Versions"]
    written = [version["Key"] for version in versions if version["Key"].endswith(".parquet")]
    assert sorted(written) == sorted(f"results/small/trials/{trial_id}.parquet" for trial_id in expected)
    assert not objects.keys("results/small/.ray"), "what Ray keeps of its own went to the bucket"

    # From anywhere: by its URI, or by its name in the storage.
    shown = json.loads(sweep.ask("status", f"{STORAGE}/small", "--json").stdout)
    assert shown["state"] == "finished"
    assert shown["trials"]["succeeded"] == len(expected)
    front = sweep.ask("frontier", "small", "--storage", STORAGE, "--json")
    assert front.returncode == 0, front.stderr
    assert json.loads(front.stdout)["sweep"] == "small"
    again = sweep.ask("resume", "small", "--storage", STORAGE)
    assert again.returncode == 0, again.stderr
    assert store.finished() == expected.keys()
