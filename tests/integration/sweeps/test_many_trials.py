"""Sixty trivial trials by the benchmark that runs five hundred: all finish, and the driver's memory stays flat."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

BENCHMARK = Path(__file__).parents[3] / "benchmarks/many_trials.py"


@pytest.mark.exhaustive
def test_sixty_trials_finish_in_flat_memory() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--trials", "60", "--json"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["succeeded"] == found["trials"] == 60
    # A row of results is a few kilobytes: a driver that kept every trial's would be far above this.
    assert found["driver_mb_at_the_end"] < found["driver_mb_at_a_fifth"] + 100
