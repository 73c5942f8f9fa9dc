"""Tests of one group run on one worker: on that rest clusters, servers and trained sweeps that several tests use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GROUPED = """
import os
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_one(number):
    with open("workers", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


@pytest.mark.parametrize(("marked", "workers"), [(True, 1), (False, 2)])
def test_a_group_keeps_to_one_of_two_workers(tmp_path: Path, marked: bool, workers: int) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_grouped.py").write_text(
        GROUPED if marked else GROUPED.replace("xdist_group", "ungrouped")
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", "2", "--dist", "loadgroup"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert len(set((tmp_path / "workers").read_text().splitlines())) == workers
