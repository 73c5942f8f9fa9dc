"""Fixtures of the tests that run the real command."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Sweep, alive, family


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
