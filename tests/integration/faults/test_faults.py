"""Processes killed for real: nothing that finished is lost or run again, and the rest comes out the same."""

import os

import pyarrow.parquet as pq
import pytest
from support.processes import SPEC, Sweep, family, kill, wait_for
from support.undisturbed import Numbers, undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("faults"), pytest.mark.timeout(900)]


SHORTER = SPEC.replace("steps: 900", "steps: 600")


@pytest.fixture
def sweep(sweep: Sweep) -> Sweep:
    """The sweep of all tests here."""
    sweep.write(SHORTER)
    return sweep


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """What it finds undisturbed."""
    spec = tmp_path_factory.mktemp("undisturbed") / "spec.yaml"
    spec.write_text(SHORTER)
    return undisturbed(spec)


def check_results(sweep: Sweep, expected: Numbers) -> None:
    """Every trial of the plan has one row, equal to that of an undisturbed run."""
    assert sweep.finished() == set(expected)
    for trial_id, numbers in expected.items():
        (row,) = pq.read_table(sweep.directory / "trials" / f"{trial_id}.parquet").to_pylist()
        assert row["status"] == "succeeded", row["error"]
        assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-6)
        steps = pq.read_table(sweep.directory / "history" / f"{trial_id}.parquet")["step"].to_pylist()
        assert steps == sorted(set(steps)), "the history has every logged step once"
        assert steps[-1] == row["steps"]


def struck_at_the_right_moment(sweep: Sweep) -> bool:
    """Something has finished, and something else is between two checkpoints."""
    return bool(sweep.finished()) and bool(sweep.checkpointed() - sweep.finished())


def test_a_killed_worker_is_replaced_and_continues_from_its_checkpoint(
    sweep: Sweep, expected: Numbers
) -> None:
    process = sweep.start("run", "spec.yaml", "--address", "local")
    wait_for(sweep.checkpointed, 120, "a first checkpoint")
    running = wait_for(
        lambda: [t for t in sweep.state().get("running", ()) if t.get("step", 0) >= 40],
        120,
        "a running trial",
    )
    kill(running[0]["pid"])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    lines = [line for line in err.splitlines() if running[0]["trial_id"] in line]
    assert any("retrying" in line for line in lines), err
    assert "continued from step" in lines[-1], err
    check_results(sweep, expected)


def test_after_a_killed_driver_resume_finishes_what_is_missing(sweep: Sweep, expected: Numbers) -> None:
    process = sweep.start("run", "spec.yaml", "--address", "local")
    wait_for(lambda: struck_at_the_right_moment(sweep), 180, "one trial finished, one interrupted")
    sweep.orphans = family(process.pid)
    kill(process.pid)
    process.wait(30)
    wait_for(lambda: not sweep.orphaned_trials(), 30, "no trial runs on without its driver")
    before = {path.name: path.stat().st_mtime_ns for path in (sweep.directory / "trials").glob("*.parquet")}
    interrupted = sweep.checkpointed() - sweep.finished()

    resumed = sweep.run("resume", "small", "--address", "local")
    assert resumed.returncode == 0, resumed.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (sweep.directory / "trials").glob("*.parquet")}
    assert {name: after[name] for name in before} == before, "finished trials are not run again"
    for trial_id in interrupted:
        last = [line for line in resumed.stderr.splitlines() if trial_id in line][-1]
        assert "continued from step" in last
    check_results(sweep, expected)


@pytest.mark.exhaustive
def test_after_ray_itself_is_killed_the_run_ends_and_resume_finishes(sweep: Sweep, expected: Numbers) -> None:
    process = sweep.start("run", "spec.yaml", "--address", "local")
    wait_for(lambda: struck_at_the_right_moment(sweep), 180, "one trial finished, one interrupted")
    sweep.orphans = family(process.pid)
    for child in sweep.orphans:
        if child.name() in ("gcs_server", "raylet"):
            child.kill()
    _, err = process.communicate(timeout=150)
    assert process.returncode != 0, err
    wait_for(lambda: not sweep.orphaned_trials(), 30, "no trial runs on without its Ray")

    resumed = sweep.run("resume", "small", "--address", "local")
    assert resumed.returncode == 0, resumed.stderr
    check_results(sweep, expected)


def test_an_interrupt_stops_gently_and_stop_does_the_same(sweep: Sweep, expected: Numbers) -> None:
    process = sweep.start("run", "spec.yaml", "--address", "local")
    wait_for((sweep.directory / "spec.yaml").exists, 120, "the sweep's directory")
    os.kill(process.pid, 2)  # while it connects, or soon after
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.count("stopping; what runs keeps its last checkpoint") <= 1
    assert not sweep.finished(), "nothing was begun that had not been"

    process = sweep.start("run", "spec.yaml", "--address", "local")
    wait_for(sweep.checkpointed, 120, "a first checkpoint")
    refused = sweep.ask("run", "spec.yaml", "--address", "local")
    assert refused.returncode == 2
    assert "is running already" in refused.stderr
    os.kill(process.pid, 2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.count("stopping; what runs keeps its last checkpoint") == 1, "one answer"
    assert "cdsweep resume" in err

    process = sweep.start("resume", "small", "--address", "local")
    wait_for(lambda: sweep.state().get("state") == "running", 60, "the resumed run")
    stopped = sweep.ask("stop", "small")
    assert stopped.returncode == 0, stopped.stderr
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    status = sweep.ask("status", "small", "--json")
    assert '"state": "stopped"' in status.stdout

    assert sweep.run("resume", "small", "--address", "local").returncode == 0
    check_results(sweep, expected)
