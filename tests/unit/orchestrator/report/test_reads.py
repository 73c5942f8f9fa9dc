"""What looking at a sweep costs: as many reads for thousands of trials as for a few, and none for what was seen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.object_store import BUCKET, ObjectStore
from support.reported import noise_pictures, write_sweep
from support.tiers import exhaustive

from orchestrator.execution import driver as driving
from orchestrator.execution.driver import Driver
from orchestrator.report.page.document import report_document
from orchestrator.report.status import settled_status, status_document, statuses
from orchestrator.results.catalog import find_sweep
from orchestrator.results.files import Files
from orchestrator.results.leases import Watch
from orchestrator.results.store import SweepStore
from trainers.patience import VARIABLE


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every read, look and listing of any storage, as it is done."""
    done: list[str] = []
    operation = Files._do

    def counted(self: Files, verb: str, name: str, *rest: Any) -> Any:
        if verb not in ("write", "create", "remove"):
            done.append(f"{verb} {name}")
        return operation(self, verb, name, *rest)

    monkeypatch.setattr(Files, "_do", counted)
    return done


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    made = ObjectStore()
    made.empty()  # another server of this process may have left something
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_REGION", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.close()


@pytest.mark.parametrize("count", [30, 300, *exhaustive(3000)])
def test_status_takes_two_reads_whatever_the_number_of_trials(
    count: int, objects: ObjectStore, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "HEARTBEAT_SECONDS", 1000.0)  # the driver looks for itself
    one = write_sweep(tmp_path, finished=1).trials()
    ids = [f"{number:016x}" for number in range(count)]
    rows = one.take(pa.array([0] * count)).set_column(0, one.schema.field(0), [pa.array(ids)])
    storage = f"s3://{BUCKET}/results"
    store = SweepStore(storage, "large")
    store.create("name: large\n", {"trials": [{"trial_id": trial_id} for trial_id in ids]}, {})
    objects.fill(f"results/large/trials/{trial_id}.parquet" for trial_id in ids[:-1])
    store._rows.keep(rows.slice(0, count - 1))
    with Driver(store, pytest.fail) as driver:
        driver.began(count)
        store.write_trial(rows.slice(count - 1))
        assert store.trial(ids[-1]) is not None
        driver.noted(count)
        reads.clear()
        assert settled_status(find_sweep("large", storage))["state"] == "running"
        assert len(reads) <= 2, reads
        driver.outcome = "ended"
    reads.clear()
    document = settled_status(find_sweep("large", storage))
    assert len(reads) <= 2, reads
    assert document["state"] == "finished"
    assert document["trials"]["succeeded"] == document["trials"]["planned"] == count

    reader, watch = SweepStore(storage, "large"), Watch()
    for _ in range(3):
        reads.clear()
        status_document(reader, watch)
        assert len(reads) == 1, reads
    reads.clear()
    assert reader.trials().num_rows == count
    assert sorted(reads) == ["list trials", "read journal.parquet"]
    reads.clear()
    reader.trials()
    assert reads == ["list trials"]


def test_a_list_takes_a_read_for_each_sweep(reads: list[str], tmp_path: Path) -> None:
    for number in range(20):
        store = SweepStore(str(tmp_path), f"sweep-{number}")
        store.create("name: large\n", {"trials": [{"trial_id": "a"}]}, {})
        with Driver(store, pytest.fail) as driver:
            driver.began(1)
            driver.outcome = "stopped"
    reads.clear()
    found = statuses(str(tmp_path))
    assert [sweep["state"] for sweep in found] == ["stopped"] * 20
    assert len(reads) <= 20 + 1, "one to list them"


def test_what_is_no_sweep_yet_is_not_listed(tmp_path: Path) -> None:
    with Driver(SweepStore(str(tmp_path), "refused"), pytest.fail):
        pass
    (tmp_path / "no-sweep").mkdir()
    write_sweep(tmp_path, finished=2)
    (found,) = statuses(str(tmp_path))
    assert (found["sweep"], found["state"], found["trials"]["succeeded"]) == ("demo", "planned", 2)


def test_a_live_report_reads_the_same_for_every_finished_trial(reads: list[str], tmp_path: Path) -> None:
    whole = write_sweep(tmp_path / "whole", prompts=True, pictures=noise_pictures(2, 8), finished=12)
    store = write_sweep(tmp_path, prompts=True, pictures=noise_pictures(2, 8), finished=2)
    memory: dict[Any, Any] = {}
    store.trials()
    report_document(store, memory=memory)
    costs = []
    for trial_id in sorted(whole.trial_ids() - store.trial_ids()):
        for folder in ("history", "evaluations", "images", "trials"):
            (path,) = Path(whole.url(folder)).glob(f"{trial_id}.*")
            Path(store.url(f"{folder}/{path.name}")).write_bytes(path.read_bytes())
        reads.clear()
        store.trial(trial_id)
        document = report_document(store, memory=memory)
        assert trial_id in document["curves"]
        costs.append(len(reads))
    assert len(set(costs)) == 1, costs
    assert sum(trial_id in read for read in reads) == 4, (
        "its row, history, evaluations and picture, once each"
    )
