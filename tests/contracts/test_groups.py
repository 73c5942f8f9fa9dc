"""Tests of one group run on one worker: on that rest clusters, servers and trained sweeps that several tests use."""

import os
import shutil
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

SHARING = """
import os
import pytest

@pytest.fixture(scope="module")
def built():
    return os.environ["PYTEST_XDIST_WORKER"]

@pytest.mark.parametrize("number", range(8))
def test_one(built, number):
    with open("workers", "a") as file:
        file.write(built + "\\n")
"""


@pytest.mark.parametrize(("marked", "workers"), [(True, 1), (False, 2)])
def test_a_group_keeps_to_one_of_two_workers(tmp_path: Path, marked: bool, workers: int) -> None:
    text = GROUPED if marked else GROUPED.replace("xdist_group", "ungrouped")
    assert workers_of(text, tmp_path) == workers


@pytest.mark.parametrize(("scope", "workers"), [("module", 1), ("function", 2)])
def test_what_a_module_builds_for_all_its_tests_is_built_once(
    tmp_path: Path, scope: str, workers: int
) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    assert workers_of(SHARING.replace('"module"', f'"{scope}"'), tmp_path) == workers


def workers_of(text: str, tmp_path: Path) -> int:
    """How many of two workers run the tests of a module."""
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_grouped.py").write_text(text)
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
    return len(set((tmp_path / "workers").read_text().splitlines()))
