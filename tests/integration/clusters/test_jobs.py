"""A sweep as a Ray job on a cluster that asks for a token: every command in a process of its own, as from a laptop."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.clusters.ray_head import Head, ray_head
from support.processes import Sweep, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("jobs"), pytest.mark.timeout(900)]

SPEC = """\
name: small
model: {mixture: {weights: [1.0], means: [[0.0, 0.0]], covariances: [[[1.0, 0.0], [0.0, 1.0]]]}}
sampling: {steps: 16}
constraints: [{reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.2, 0.4]}, unit: sigma}]
# No early end: the test needs time to stop it.
training: {steps: 1200, batch_per_worker: 64, width: 32, checkpoint_every: 20}
convergence: {tolerance: 1.0e-9}
evaluation: {images: 512, every: 50}
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as made:
        yield made


@pytest.fixture
def laptop(sweep: Sweep, head: Head, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Commands that know the token and no address, whatever a Ray of an earlier test has left in this process."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
    sweep.write(SPEC)
    return sweep


def done(result: "subprocess.CompletedProcess[str]") -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_detached_sweep_is_followed_stopped_and_resumed(laptop: Sweep, head: Head) -> None:
    at = ("--address", head.dashboard)
    document = json.loads(done(laptop.run("run", "spec.yaml", "--detach", *at, "--json")))
    job = document["job"]
    assert document["sweep"] == "small"
    assert document["storage"] == str(laptop.storage), "relative, and the cluster is this machine"
    assert job["submission_id"] in done(laptop.run("logs", "small", *at, "--json"))
    assert document["follow"] == f"cdsweep logs small --follow --address {head.dashboard}"
    again = laptop.run("run", "spec.yaml", "--detach", *at)
    assert again.returncode == 2
    assert f"is running already, as job {job['submission_id']}" in again.stderr

    follower = laptop.start("logs", "small", "--follow", *at)
    wait_for(laptop.checkpointed, 300, "a first checkpoint")
    # Another form of the address: the job is found all the same.
    status = json.loads(done(laptop.run("status", "small", "--address", head.address, "--json")))
    assert (status["state"], status["job"]["status"]) == ("running", "RUNNING")
    assert status["trials"]["planned"] == 2
    done(laptop.run("stop", "small", "--address", head.address))
    out, err = follower.communicate(timeout=120)
    assert follower.returncode == 0, err
    assert "plan of small" in out
    assert "stopping; what runs keeps its last checkpoint" in out
    assert f"`cdsweep resume {laptop.directory}`" in out, "the driver ended by itself, and was not killed"
    assert "STOPPED" in err
    assert json.loads(done(laptop.run("status", "small", "--json")))["state"] == "stopped"
    refused = laptop.run("stop", "small", *at)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)

    interrupted = laptop.checkpointed() - laptop.finished()
    assert interrupted
    done(laptop.run("resume", "small", "--detach", *at))
    log = done(laptop.run("logs", "small", "--follow", *at))
    for trial_id in interrupted:
        assert any(trial_id in line and "continued from step" in line for line in log.splitlines()), log
    table = log[log.index("constrained: 2 of 2 trials") :]
    frontier, report = table.rstrip().splitlines()[-2:]
    assert frontier.endswith("frontier.svg"), "the log ends with the frontier"
    assert report.endswith("report.html"), report
    status = json.loads(done(laptop.run("status", "small", *at, "--json")))
    assert (status["state"], status["job"]["status"]) == ("finished", "SUCCEEDED")
    assert status["trials"]["succeeded"] == 2
    rows = pq.ParquetDataset(laptop.directory / "trials").read().to_pylist()
    assert {row["steps"] for row in rows} == {1200}


@pytest.mark.exhaustive
def test_what_the_dashboard_shows_of_a_job_is_the_sweep_and_no_secret(laptop: Sweep, head: Head) -> None:
    """Watched, not detached: a driver behind Ray's client port runs as a job, too."""
    run = laptop.run(
        *("run", "spec.yaml", "--name", "watched", "--address", head.client, "--json"),
        *("--set", "training.steps=20", "--set", "methods=[{weighted: {scale: 0.5}}]"),
    )
    document = json.loads(done(run))
    assert document["sweep"] == "watched"
    assert document["methods"][0]["trials"] == 1
    assert "plan of watched" in run.stderr
    bearer = {"authorization": f"Bearer {head.token.read_text()}"}
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers=bearer)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - loopback
        listed = response.read().decode()
    shown = next(each for each in json.loads(listed) if "watched" in (each["submission_id"] or ""))
    assert shown["metadata"]["cdsweep_sweep"] == "watched"
    assert shown["metadata"]["cdsweep_storage"] == str(laptop.storage)
    assert shown["metadata"]["cdsweep_link"] == laptop.storage.joinpath("watched").as_uri()
    assert head.token.read_text() not in listed


@pytest.mark.parametrize("token", ["wrong", "missing"])
def test_a_token_that_does_not_fit_is_one_line_at_once(
    laptop: Sweep, head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if token == "wrong":  # noqa: S105 - the case's name
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    said = {
        "wrong": "refuses the token from RAY_AUTH_TOKEN",
        "missing": "asks for a token, and there is none",
    }
    commands = {
        "wrong": [
            ["run", "spec.yaml", "--address", head.address],
            ["run", "spec.yaml", "--address", head.client],
            ["run", "spec.yaml", "--detach", "--address", head.dashboard],
            ["logs", "small", "--address", head.dashboard],
            ["status", "small", "--address", head.address],
            ["stop", "small", "--address", head.address],
        ],
        "missing": [
            ["run", "spec.yaml", "--address", head.address],
            ["run", "spec.yaml", "--detach", "--address", head.dashboard],
        ],
    }[token]
    for command in commands:
        _is_one_line_within_five_seconds(laptop, command, said[token])
    assert not laptop.storage.exists(), "nothing was started"


def test_a_cluster_out_of_reach_is_one_line_at_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sweep.write(SPEC)
    commands = [
        ["run", "spec.yaml", "--address", "127.0.0.1:1"],
        ["run", "spec.yaml", "--detach", "--address", "http://127.0.0.1:1"],
        ["status", "small", "--address", "ray://127.0.0.1:1"],
    ]
    for command in commands:
        _is_one_line_within_five_seconds(sweep, command, "cannot reach Ray at")
    assert not sweep.storage.exists(), "nothing was started"


def test_the_doctor_sees_the_cluster(laptop: Sweep, head: Head) -> None:
    document = json.loads(done(laptop.run("doctor", "spec.yaml", "--address", head.address, "--json")))
    (found,) = [check["found"] for check in document["checks"] if check["name"] == "ray cluster"]
    assert f"at {head.address}, 1 node(s), 2 CPU, 0 GPU, dashboard {head.dashboard}" in found


def _is_one_line_within_five_seconds(sweep: Sweep, command: list[str], said: str) -> None:
    """Five seconds are the promise, beyond what a command takes to start on a machine as busy as this one is now."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        result = sweep.run(*command)
        seconds.append(time.monotonic() - began)
        assert result.returncode == 1, result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert said in result.stderr
        assert result.stdout == ""
        if seconds[-1] < 5:
            return
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import grpc, ray, orchestrator.cli"], check=True)
        seconds[-1] -= time.monotonic() - began
        if seconds[-1] < 5:
            return
    raise AssertionError(f"{command}: {seconds}")
