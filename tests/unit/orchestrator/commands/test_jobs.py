"""Commands about jobs, on a cluster that is made up: what they print and how they end."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.commands import jobs as commands
from orchestrator.errors import UsageError
from orchestrator.execution import jobs as execution
from orchestrator.execution.jobs import Job
from orchestrator.results.store import SweepStore

SPEC = """\
name: small
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints: [{reward: {linear: {direction: [1.0]}}, name: right, at_least: 0.3}]
"""
ADDRESS = "http://head:8265"
RUNNING = Job(
    submission_id="cdsweep-small-1",
    sweep="small",
    storage="s3://bucket/sweeps",
    status="RUNNING",
    message="Job is currently running.",
    started_at=None,
    exit_code=None,
)


class FakeJobs:
    """A cluster with one job, which ends as a test wants."""

    url = ADDRESS
    job = RUNNING
    end: Callable[[Job], Job] = staticmethod(lambda job: job)
    asked: list[str]

    def __init__(self, address: str | None = None) -> None:
        """Take any address."""

    def submit(self, spec: Any, *, preview: bool = True, fresh: bool = False) -> Job:
        self.asked.append(f"submit {spec.name} {spec.storage} {preview}" + (" fresh" if fresh else ""))
        return self.job

    def find(self, sweep: str) -> Job:
        if sweep != self.job.sweep:
            raise UsageError(f"no job of a sweep {sweep!r}")
        return self.job

    def logs(self, job: Job) -> str:
        return "plan of small\n"

    def follow(self, job: Job, write: Callable[[str], object]) -> Job:
        write("plan of small\n")
        return self.end(job)

    def stop(self, job: Job) -> Job:
        self.asked.append("stop")
        return replace(job, status="STOPPED")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeJobs]:
    made = type("Fake", (FakeJobs,), {"asked": []})
    monkeypatch.setattr(execution, "Jobs", made)
    monkeypatch.setattr("orchestrator.cli.reach", lambda _: None)
    monkeypatch.setattr("orchestrator.commands.jobs._store", lambda _: "its storage is out of reach")
    return made


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)

    def invoke(command: str, *arguments: str) -> Any:
        first = [str(spec)] if command == "run" else ["small"]
        return CliRunner().invoke(app, [command, *first, "--address", ADDRESS, *arguments])

    return invoke


def test_a_detached_run_says_how_to_go_on(fake: type[FakeJobs], run: Callable[..., Any]) -> None:
    result = run("run", "--detach", "--no-preview", "--storage", "s3://bucket/sweeps")
    assert result.exit_code == 0, result.stderr
    assert fake.asked == ["submit small s3://bucket/sweeps False"]
    for line in (
        "submitted small as job cdsweep-small-1; results go to s3://bucket/sweeps/small",
        f"follow: cdsweep logs small --follow --address {ADDRESS}",
        f"stop:   cdsweep stop small --address {ADDRESS}",
        f"resume: cdsweep resume small --storage s3://bucket/sweeps --detach --address {ADDRESS}",
    ):
        assert line in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "SUCCEEDED", "exit_code": 0}, 0),
        ({"status": "FAILED", "exit_code": 3}, 3),
        ({"status": "FAILED", "exit_code": None}, 1),
        ({"status": "STOPPED"}, 130),
    ],
)
def test_a_watched_run_ends_as_its_job(
    fake: type[FakeJobs], run: Callable[..., Any], end: dict[str, Any], code: int
) -> None:
    fake.end = staticmethod(lambda job: replace(job, **end))
    result = run("run")
    assert result.exit_code == code
    assert result.stdout == "plan of small\n"


def test_an_interrupt_of_a_watched_run_stops_the_job(fake: type[FakeJobs], run: Callable[..., Any]) -> None:
    def interrupted(job: Job) -> Job:
        raise KeyboardInterrupt

    fake.end = staticmethod(interrupted)
    result = run("run")
    assert result.exit_code == 130
    assert fake.asked[-1] == "stop"
    assert "asked job cdsweep-small-1 to stop; Ctrl-C again" in result.stderr
    assert "`cdsweep resume` goes on" in result.stderr


def test_a_dry_run_submits_nothing(fake: type[FakeJobs], run: Callable[..., Any]) -> None:
    assert run("run", "--dry-run", "--detach").exit_code == 0
    assert fake.asked == []


def test_status_where_the_storage_is_out_of_reach(fake: type[FakeJobs], run: Callable[..., Any]) -> None:
    document = json.loads(run("status", "--json").stdout)
    assert (document["sweep"], document["state"], document["trials"]) == ("small", "running", None)
    assert document["job"]["submission_id"] == "cdsweep-small-1"
    shown = run("status").stdout
    assert "small: running (its storage is out of reach)" in shown


def test_a_sweep_that_is_not_there_is_not_called_out_of_reach(tmp_path: Path) -> None:
    missing = commands._store(replace(RUNNING, storage=str(tmp_path)))
    assert isinstance(missing, str)
    assert f"there is no {tmp_path}/small" in missing
    assert "out of reach" not in missing
    unknown = commands._store(replace(RUNNING, storage="nowhere://bucket"))
    assert isinstance(unknown, str)
    assert "out of reach" in unknown


def test_stop(
    fake: type[FakeJobs], run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SweepStore(str(tmp_path), "small")
    store.take_lease(lambda _: None)
    monkeypatch.setattr("orchestrator.commands.jobs._store", lambda _: store)
    result = run("stop")
    assert result.exit_code == 0
    assert store.stop_requested(), "first the sweep itself is asked"
    assert fake.asked == ["stop"], "then its job"
    fake.job = replace(RUNNING, status="SUCCEEDED")
    again = run("stop")
    assert again.exit_code == 2
    assert "is not running" in again.stderr


def test_logs(fake: type[FakeJobs], run: Callable[..., Any]) -> None:
    assert run("logs").stdout == run("logs", "--follow").stdout == "plan of small\n"
    assert json.loads(run("logs", "--json").stdout)["logs"] == "plan of small\n"
    assert run("logs", "--json", "--follow").exit_code == 2
