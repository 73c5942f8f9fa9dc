"""Fixtures of the tests that run the real command, and one worker for those that share a cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clusters.nodes import Nodes
from support.processes import Sweep, alive, family


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of the shared cluster on one worker, or each worker would start one."""
    for item in items:
        if isinstance(item, pytest.Function) and "shared_cluster" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("shared_cluster"))


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Nodes]:
    """Two CPUs for tests that leave a cluster as they found it; whoever kills anything starts one of its own."""
    with Nodes(cpus=(2,), killed=False) as nodes:
        yield nodes


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    """A small sweep; whatever it started ends with the test."""
    made = Sweep(tmp_path)
    made.write()
    yield made
    for orphan in made.orphans:
        if alive(orphan):
            orphan.kill()
    for process in made.processes:
        for member in family(process.pid):
            member.kill()
        process.kill()
        process.wait(30)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def shared(sweep: Sweep, shared_cluster: Nodes) -> Sweep:
    """The sweep, whose commands use the shared cluster."""
    sweep.environment = shared_cluster.environment
    return sweep
