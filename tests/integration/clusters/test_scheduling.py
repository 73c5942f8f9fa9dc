"""Trials on a cluster that changes: fewer workers, parts of a GPU, workers spread over nodes, no room at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from support.clusters.nodes import Node, Nodes
from support.processes import SPEC, Sweep, wait_for
from support.undisturbed import undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ONE = SPEC.replace("{grid: [0.2, 0.4]}", "0.3").replace("methods: [constrained,", "methods: [constrained] #")


@contextmanager
def cluster(patch: pytest.MonkeyPatch, *cpus: int, gpus: tuple[int, ...] = ()) -> Iterator[Nodes]:
    """Nodes of so many CPUs, the head first, that commands of the test connect to."""
    with Nodes(cpus=cpus, gpus=gpus) as nodes:
        for name, value in nodes.environment.items():
            patch.setenv(name, value)
        yield nodes


def train_workers(node: Node) -> list[psutil.Process]:
    return [process for process in node.family() if "RayTrainWorker" in " ".join(process.cmdline())]


def rows(sweep: Sweep) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(sweep.directory / "trials").to_pylist()
    return found


def training(sweep: Sweep, count: int) -> dict[str, int]:
    """The process of each running trial by id, once so many run and have written checkpoints; until then none."""
    started = [trial for trial in sweep.state().get("running", ()) if "pid" in trial]  # once it has reported
    running = {trial["trial_id"]: trial["pid"] for trial in started}
    return running if len(running) == count == len(sweep.checkpointed()) else {}


def test_an_elastic_trial_goes_on_with_the_workers_that_are_left(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, spread over two nodes; one node dies; one worker finds what the two would have found."""
    sweep.write(
        ONE.replace("steps: 900", "steps: 400")
        + "resources: {workers: {min: 1, max: 2}, placement: spread}\n"
    )
    with cluster(monkeypatch, 1, 1) as nodes:
        process = sweep.start("run", "spec.yaml")
        wait_for(sweep.checkpointed, 180, "a first checkpoint")
        assert [len(train_workers(node)) for node in nodes.nodes] == [1, 1]
        nodes.kill(nodes.nodes[1])
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (row,) = rows(sweep)
    assert row["status"] == "succeeded"
    assert "continued from step" in str(row["notes"])
    ((_, numbers),) = undisturbed(sweep.spec).items()
    assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-3)


@pytest.mark.exhaustive
def test_small_models_share_a_gpu(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that do not end by themselves: two of three train, whoever is faster, until they are stopped."""
    sweep.write(
        SPEC.replace("steps: 900", "steps: 10000000")
        + "resources: {gpus_per_worker: 0.5, cpus_per_worker: 0.5}\n"
    )
    with cluster(monkeypatch, 2, gpus=(1,)) as nodes:
        process = sweep.start("run", "spec.yaml")
        both = wait_for(lambda: training(sweep, 2), 240, "two trials train")
        assert both.keys() == sweep.checkpointed()
        assert len(set(both.values()) & nodes.nodes[0].workers()) == 2, "each in a living process of its own"
        assert sweep.finished() == set()
        stopped = sweep.ask("stop", "small")
        _, said = process.communicate(timeout=240)
    assert stopped.returncode == 0, stopped.stderr
    assert "2 trial(s) at a time" in said
    assert len(sweep.checkpointed()) == 2, "the third found no room"


@pytest.mark.exhaustive
def test_a_trial_that_finds_no_room_is_reported_and_goes_on_when_there_is_some(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep.write(ONE)
    with cluster(monkeypatch, 0, 1) as nodes:
        process = sweep.start("run", "spec.yaml")
        wait_for(sweep.checkpointed, 180, "a first checkpoint")
        nodes.kill(nodes.nodes[1])
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("waiting for room"):
                break
        assert "a trial needs 1 worker(s) with 1 CPU and 0 GPU each, and the largest node has 0 CPU" in line
        nodes.add(1)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (row,) = rows(sweep)
    assert "continued from step" in str(row["notes"])
