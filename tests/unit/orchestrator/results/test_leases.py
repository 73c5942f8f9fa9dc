"""One driver per sweep: on local disks, on S3, and where a storage cannot tell two apart."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.object_store import BUCKET, ObjectStore
from support.reported import write_sweep
from support.tiers import exhaustive
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.commands.again import Retry, retried
from orchestrator.errors import CdsweepError, LeaseLostError, StorageError, UsageError
from orchestrator.execution import driver
from orchestrator.execution.driver import Driver
from orchestrator.report.status import settled_status, status_document
from orchestrator.results import leases
from orchestrator.results.files import Files
from orchestrator.results.leases import Watch
from orchestrator.results.schema import Names
from orchestrator.results.store import SweepStore
from trainers import patience


class Clock:
    """Stands in for time: sleeping moves it, and calls what happens meanwhile."""

    def __init__(self) -> None:
        """Begin at 1000 s."""
        self.now = 1000.0
        self.meanwhile: Any = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leases, "time", made)
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    made = ObjectStore()
    yield made
    made.close()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage of each kind, empty."""
    if request.param == "local":
        return str(tmp_path)
    server: ObjectStore = request.getfixturevalue("server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_REGION", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE", patience.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    server.empty()
    return f"s3://{BUCKET}/results"


def quiet(line: str) -> None:
    """Say nothing."""


def elsewhere(store: SweepStore, state: str = "running", beat: int = 1) -> None:
    """Make the last driver one of another machine, which said this."""
    last = store.holder()
    assert last is not None
    files = Files(store.url())
    lease = replace(last, owner="her@there (process 7)", process=None)
    files.write(f"lease/{lease.number:06d}.json", json.dumps(lease.__dict__).encode())
    said = {"lease": lease.number, "beat": beat, "state": state, "process": None, "owner": lease.owner}
    said |= {"since": lease.since, "planned": 2, "trials": {}, "feasible": 0, "failures": [], "running": []}
    files.write("journal.json", json.dumps(said).encode())


# ---------------------------------------------------------------------- taking it


@pytest.mark.parametrize("again", [*range(5), *exhaustive(*range(5, 20))])
def test_of_drivers_that_start_together_one_drives(
    storage: str, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.02)
    refused = threading.Semaphore(0)
    together = threading.Barrier(4)

    def start(_: int) -> int | CdsweepError | None:
        store = SweepStore(storage, f"sweep-{again}")
        together.wait(60)
        try:
            with Driver(store, quiet):
                for _ in range(3):
                    assert refused.acquire(timeout=60)
                return store.lease
        except CdsweepError as error:
            refused.release()
            return error

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(start, range(4)))
    assert found.count(1) == 1, found
    others = [each for each in found if isinstance(each, UsageError)]
    assert len(others) == 3
    assert all(f"(process {os.getpid()}) since 20" in str(each) for each in others)


def test_who_lets_go_is_followed_at_once(storage: str, clock: Clock) -> None:
    for number in (1, 2, 3):
        store = SweepStore(storage, "sweep")
        with Driver(store, pytest.fail):
            assert store.lease == number
    assert clock.now == 1000.0


def test_a_driver_elsewhere_that_beats_is_named(storage: str, clock: Clock) -> None:
    store = SweepStore(storage, "sweep")
    store.take_lease(quiet)
    elsewhere(store)
    clock.meanwhile = lambda: elsewhere(store, beat=int(clock.now))
    told: list[str] = []
    with pytest.raises(UsageError, match=r"is running already, driven by her@there \(process 7\) since 20"):
        SweepStore(storage, "sweep").take_lease(told.append)
    assert clock.now < 1000.0 + leases.HEARTBEAT_SECONDS
    assert "her@there" in told[0]


def test_a_driver_elsewhere_that_is_silent_is_followed_after_its_lease(storage: str, clock: Clock) -> None:
    store = SweepStore(storage, "sweep")
    store.take_lease(quiet)
    elsewhere(store)
    assert SweepStore(storage, "sweep").take_lease(quiet).number == 2
    assert leases.LEASE_SECONDS <= clock.now - 1000.0 < 1.2 * leases.LEASE_SECONDS


def test_a_watcher_that_was_kept_itself_does_not_count_that_time(clock: Clock) -> None:
    watch = Watch()
    watch.quiet("beat 1")
    clock.now += 1000.0  # the storage was out of reach, perhaps for the driver too
    assert watch.quiet("beat 1") == 2 * leases.HEARTBEAT_SECONDS
    clock.now += 1.0
    assert watch.quiet("beat 2") == 0.0


def test_a_driver_that_was_killed_here_is_followed_at_once(tmp_path: Path, clock: Clock) -> None:
    text = (
        "import os, signal, sys; from orchestrator.results.store import SweepStore; "
        "SweepStore(sys.argv[1], 'sweep').take_lease(print); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", text, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert SweepStore(str(tmp_path), "sweep").take_lease(pytest.fail).number == 2
    assert clock.now == 1000.0


def test_a_lease_whose_writing_was_cut_off_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "sweep" / "lease").mkdir(parents=True)
    (tmp_path / "sweep" / "lease" / "000004.json").write_bytes(b"")
    assert SweepStore(str(tmp_path), "sweep").take_lease(quiet).number == 5


class Forgetful(MemoryFileSystem):  # type: ignore[misc]
    """An object store that takes the condition, and does not keep it."""

    protocol = "r2"
    store: dict[str, Any] = {}  # noqa: RUF012 - as its base does
    pseudo_dirs = [""]  # noqa: RUF012 - the same

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("r2://", "memory://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value, **kwargs)


class TwoSteps(Forgetful):
    """One that has no such operation of its own."""

    protocol = "oci"
    store: dict[str, Any] = {}  # noqa: RUF012 - as its base does
    pipe_file = fsspec.AbstractFileSystem.pipe_file

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("oci://", "memory://")))


@pytest.mark.parametrize("kind", [Forgetful, TwoSteps])
def test_a_storage_that_cannot_tell_two_drivers_apart_is_refused(kind: type[Forgetful]) -> None:
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    store = SweepStore(f"{kind.protocol}://bucket/results", "sweep")
    with pytest.raises(
        StorageError, match=r"only where there is none \(If-None-Match\).*use a local directory, S3"
    ):
        store.take_lease(quiet)
    assert store.holder() is None


# ---------------------------------------------------------------------- losing it


def test_who_has_lost_the_lease_writes_nothing_more(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_FRESH_SECONDS", 0.0)
    old, worker = SweepStore(storage, "sweep"), SweepStore(storage, "sweep")
    number = old.take_lease(quiet).number
    worker.hold(number)
    worker.write_file("report.html", b"old")
    elsewhere(old, "stopped")
    new = SweepStore(storage, "sweep")
    new.take_lease(quiet)
    for store in (old, worker, worker.tolerant()):
        for write in (
            lambda store=store: store.write_file("report.html", b"late"),
            lambda store=store: store.save_checkpoint("aa11", 1, {"model": b"m"}),
            lambda store=store: store.drop_checkpoints("aa11"),
            lambda store=store: store.write_journal({}),
        ):
            with pytest.raises(
                LeaseLostError, match=r"is driven by .* since .*: this driver has stopped, and writes"
            ):
                write()
    assert new.read_file("report.html") == b"old"
    new.write_file("report.html", b"new")


def test_a_driver_whose_sweep_was_removed_makes_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_FRESH_SECONDS", 0.0)
    store = SweepStore(str(tmp_path), "sweep")
    store.take_lease(quiet)
    for path in sorted((tmp_path / "sweep").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(LeaseLostError, match="was removed"):
        store.write_file("report.html", b"late")
    assert not list((tmp_path / "sweep").iterdir())


DRIVES = """
import sys, time
from orchestrator.execution import driver
from orchestrator.execution.driver import Driver
from orchestrator.results import leases
from orchestrator.results.store import SweepStore

store = SweepStore(sys.argv[1], "sweep")
driver.HEARTBEAT_SECONDS = 1.0
with Driver(store, print) as driver:
    driver.began(0)
    count = 0
    try:
        while True:
            count += 1
            try:
                store.write_file("figures/count", str(count).encode())
            except leases.LeaseLostError:
                break
            print("idle", flush=True)
            time.sleep(1.0)
        while True:
            time.sleep(0.1)
    except KeyboardInterrupt:  # by the heartbeat, which may be first to see that it is lost
        print(driver.lost, flush=True)
"""


class Hurried(Clock):
    """A second of it is a tenth of one: who waits for a lease waits longer than a look at it serves all the same."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        time.sleep(seconds / 10)


@pytest.mark.slow
def test_a_paused_driver_that_goes_on_after_another_took_over_writes_nothing(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "time", Hurried())
    assert leases.LEASE_SECONDS / 10 > leases._FRESH_SECONDS
    old = subprocess.Popen([sys.executable, "-c", DRIVES, storage], stdout=subprocess.PIPE, text=True)
    try:
        store = SweepStore(storage, "sweep")
        assert old.stdout is not None
        assert old.stdout.readline() == "idle\n"
        os.kill(old.pid, signal.SIGSTOP)
        with Driver(store, quiet) as second:
            assert store.lease == 2
            second.began(0)
            before = {name: store.read_file(name) for name in ("figures/count", "lease/000001.json")}
            os.kill(old.pid, signal.SIGCONT)
            out, _ = old.communicate(timeout=60)
            assert f"is driven by {store.holder()}" in out
            assert {name: store.read_file(name) for name in before} == before
            journal = store.journal()
            assert journal is not None
            assert journal["lease"] == 2
    finally:
        old.kill()
        old.wait(30)


# ---------------------------------------------------------------------- what others see


def test_states_of_a_driver_elsewhere(tmp_path: Path, clock: Clock) -> None:
    store, watch = SweepStore(str(tmp_path), "sweep"), Watch()
    store.take_lease(quiet)
    elsewhere(store)
    assert status_document(store, watch)["state"] == "running", "its word is taken at a first look"
    for wait, beat, state in ((5, 2, "running"), (5, 2, "waiting"), (5, 2, "waiting"), (1, 3, "running")):
        clock.now += wait
        elsewhere(store, beat=beat)
        assert status_document(store, watch)["state"] == state
    for _ in range(4):
        clock.now += 4.0
        document = status_document(store, watch)
    assert document["state"] == "interrupted"
    assert document["driver"] == "her@there (process 7)"


def test_one_that_waits_here_for_its_storage_is_not_interrupted(tmp_path: Path) -> None:
    store = SweepStore(str(tmp_path), "sweep")
    with Driver(store, quiet):
        journal = store.journal()
        assert journal is not None
        assert settled_status(store)["state"] == "running"
        Files(store.url()).write(
            "journal.json", json.dumps(journal | {"updated_at": "2020-01-01T00:00:00+00:00"}).encode()
        )
        assert settled_status(store)["state"] == "waiting"


def test_a_refused_start_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    store = SweepStore(str(tmp_path), "sweep")
    with Driver(store, quiet) as stopped:
        stopped.began(3)
        stopped.outcome = "stopped"

    def refused() -> None:
        with Driver(SweepStore(str(tmp_path), "sweep"), quiet):
            raise UsageError("another spec")

    with pytest.raises(UsageError):
        refused()
    assert status_document(store)["state"] == "stopped"
    assert status_document(store)["trials"]["planned"] == 3


def test_a_refused_start_hides_nothing_of_a_sweep_without_a_journal(tmp_path: Path) -> None:
    store = write_sweep(tmp_path)
    (tmp_path / "demo" / "journal.json").unlink(missing_ok=True)
    with pytest.raises(UsageError), Driver(store, quiet):
        raise UsageError("another spec")
    assert status_document(store)["state"] == "finished"


def test_a_request_to_stop_is_heard_between_two_beats(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver.HEARTBEAT_SECONDS / driver._LOOKS < 1.0
    monkeypatch.setattr(driver, "HEARTBEAT_SECONDS", 1000.0)
    monkeypatch.setattr(driver, "_LOOKS", 20000)
    store = SweepStore(storage, "sweep")

    def asked(_: object) -> dict[str, Any] | None:
        with Driver(store, quiet) as driven:
            assert not driven.stop.asked.wait(0.2)
            store.request_stop()
            assert driven.stop.asked.wait(60)
            return store.journal()

    with ThreadPoolExecutor(1) as pool:  # in the main thread it would be interrupted
        (journal,) = pool.map(asked, [None])
    assert journal is not None
    assert journal["beat"] == 1


# ---------------------------------------------------------------------- removing it, and writing it anew


@pytest.mark.parametrize("silent", [True, False])
def test_a_sweep_whose_driver_elsewhere_is_silent_can_be_removed(
    tmp_path: Path, clock: Clock, *, silent: bool
) -> None:
    store = write_sweep(tmp_path)
    store.take_lease(quiet)
    elsewhere(store)
    if not silent:
        clock.meanwhile = lambda: elsewhere(store, beat=int(clock.now))
    done = CliRunner().invoke(app, ["rm", "demo", "--storage", str(tmp_path), "--yes"])
    assert "looking whether her@there (process 7)" in done.stderr
    assert done.exit_code == (0 if silent else 2), done.output
    assert (tmp_path / "demo").exists() is not silent
    assert silent or "is running already, driven by her@there (process 7)" in done.stderr


def test_other_resources_of_a_finished_sweep_leave_what_was_said_of_its_trials(tmp_path: Path) -> None:
    store = write_sweep(tmp_path)
    store.write_units([Names(rewards=("right",))])
    store.write_preview({"said": 1})
    arguments = ["resume", "demo", "--storage", str(tmp_path), "--address", "local"]
    done = CliRunner().invoke(app, [*arguments, "--set", "resources.concurrent_trials=1"])
    assert done.exit_code == 0, done.output
    assert store.plan()["resources"]["concurrent_trials"] == 1
    assert store.preview() == {"said": 1}
    assert (tmp_path / "demo" / "units.parquet").exists()
    (tmp_path / "demo" / "units.parquet").unlink()  # as where a driver died after it made the sweep grow
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "demo" / "units.parquet").exists()


# ---------------------------------------------------------------------- trials that are tried again


def test_trials_that_are_tried_again_are_missing_until_they_end(tmp_path: Path) -> None:
    store, reader = write_sweep(tmp_path, failed=1), SweepStore(str(tmp_path), "demo")
    total = store.trials().num_rows
    with Driver(store, quiet) as ended:
        ended.began(total)
        ended.outcome = "ended"
    before = status_document(reader)
    assert (before["state"], before["trials"]["failed"]) == ("finished", 1)
    (failed,) = (failure["trial_id"] for failure in before["failures"])
    assert reader.trial(failed) is not None
    with Driver(SweepStore(str(tmp_path), "demo"), quiet) as driver:
        assert failed in retried(driver, Retry.failed)
    after = status_document(reader)
    assert (after["state"], after["trials"]["failed"], after["failures"]) == ("interrupted", 0, [])
    assert after["trials"]["succeeded"] == total - 1
    assert after["trials"]["planned"] == total
    assert SweepStore(str(tmp_path), "demo").trials().num_rows == total - 1


@pytest.mark.parametrize("change", [["--retry", "failed"], ["--set", "resources.concurrent_trials=1"]])
def test_nothing_is_changed_beside_another_driver(
    tmp_path: Path, change: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "HEARTBEAT_SECONDS", 0.2)  # soon it is seen to beat
    store = write_sweep(tmp_path, failed=1)
    found = [tmp_path / "demo" / name for name in ("plan.json", "spec.yaml")]
    files = {path: path.read_bytes() for path in [*found, *(tmp_path / "demo" / "trials").iterdir()]}
    with Driver(SweepStore(str(tmp_path), "demo"), quiet):
        done = CliRunner().invoke(
            app, ["resume", "demo", "--storage", str(tmp_path), "--address", "local", *change]
        )
    assert done.exit_code == 2, done.output
    assert "is running already" in done.stderr
    assert {path: path.read_bytes() for path in files} == files
    assert store.trials().num_rows == 18


def test_the_clock_of_a_sweep_runs_while_it_is_at_work_and_stops_it_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "HEARTBEAT_SECONDS", 0.2)
    now = [100.0]
    monkeypatch.setattr(driver.time, "monotonic", lambda: now[0])
    with Driver(SweepStore(str(tmp_path), "sweep"), quiet) as first:
        now[0] += 50.0  # not at work
        with first.at_work(None):
            now[0] += 40.0
            assert first.seconds == 40.0
        now[0] += 7.0

    def second(_: object) -> tuple[float, bool, bool]:
        with Driver(SweepStore(str(tmp_path), "sweep"), quiet) as resumed:
            fresh = resumed.spent(60.0)
            with resumed.at_work(60.0):
                now[0] += 16.0  # to 4 s before the end: leaving takes up to 5
                return resumed.seconds, fresh, resumed.stop.asked.wait(60)

    with ThreadPoolExecutor(1) as pool:  # in the main thread it would be interrupted
        assert list(pool.map(second, [None])) == [(56.0, False, True)]
    journal = SweepStore(str(tmp_path), "sweep").journal()
    assert journal is not None
    assert journal["seconds"] == 56.0
