"""Trials on a cluster that changes: fewer workers, parts of a GPU, workers spread over nodes, no room at all."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from support.nodes import Node, Nodes
from support.processes import SPEC, Sweep, wait_for
from support.undisturbed import undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]

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


def test_small_models_share_a_gpu(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.write(
        SPEC.replace("steps: 900", "steps: 200") + "resources: {gpus_per_worker: 0.5, cpus_per_worker: 0.5}\n"
    )
    with cluster(monkeypatch, 2, gpus=(1,)):
        done = sweep.run("run", "spec.yaml")
    assert done.returncode == 0, done.stderr
    assert "2 trial(s) at a time" in done.stderr
    spans = sorted((row["started_at"], row["finished_at"]) for row in rows(sweep))
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans)), "two at a time"
    assert all(later[0] >= earlier[1] for earlier, later in zip(spans, spans[2:], strict=False)), "not three"


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
