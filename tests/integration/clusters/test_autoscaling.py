"""A sweep that needs three nodes brings them up, uses them, and they go away."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

CLUSTER = Path(__file__).parents[3] / "cluster"
COMMAND = [sys.executable, "-c", "from orchestrator.cli import app; app()"]


def test_a_sweep_brings_up_three_nodes_and_they_go(tmp_path: Path) -> None:
    spec = CLUSTER.parent / "sweeps" / "nine_trials.yaml"
    done = subprocess.run(
        [
            *(sys.executable, str(CLUSTER / "local_autoscaling.py"), "--figures", "--"),
            *(*COMMAND, "run", str(spec), "--storage", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "as nodes come" in done.stderr
    figures = json.loads(done.stderr.splitlines()[-1])
    assert figures["nodes"] == 3
    assert figures["gone"]
    assert figures["idle_share"] < 0.2, figures
    rows = pq.read_table(tmp_path / "nine-trials" / "trials").to_pylist()
    assert [row["status"] for row in rows] == ["succeeded"] * 9
