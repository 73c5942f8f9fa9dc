"""The autoscaler with fake nodes, on this machine: nodes come when there is work, and go when there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[3] / "cluster/local_autoscaling.py"

WORK = """
import json, os, time, ray
ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)

@ray.remote(num_cpus=1)
def work(number):
    here, other = (os.path.join(os.environ["MEETING"], str(n)) for n in (number, 1 - number))
    open(here, "w").close()
    while not os.path.exists(other):  # whoever comes first waits and keeps its CPU, as no task in ray.get does
        time.sleep(0.2)
    return ray.get_runtime_context().get_node_id()

alive = lambda: sum(node["Alive"] for node in ray.nodes())
before = alive()
used = len(set(ray.get([work.remote(number) for number in range(2)])))
most = alive()
end = time.monotonic() + 120
while alive() > 1 and time.monotonic() < end:
    time.sleep(1)
seen = {"before": before, "used": used, "most": most, "after": alive()}
print(json.dumps(seen | {"token": os.environ["RAY_AUTH_TOKEN_PATH"]}))
"""


def named(folder: str) -> list[int]:
    """Processes whose command names a folder."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(folder in part for part in process.info["cmdline"] or ())
    ]


@pytest.mark.exhaustive
@pytest.mark.ray
@pytest.mark.slow
def test_nodes_come_and_go_and_nothing_is_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--", sys.executable, "-c", WORK],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MEETING": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["before"] == 1
    assert seen["used"] == 2
    assert seen["most"] == 3
    assert seen["after"] == 1
    folder = Path(seen["token"]).parent
    assert folder.name.startswith("cds-")
    assert not folder.exists()
    assert named(str(folder)) == []


def test_a_cluster_that_does_not_start_says_why(tmp_path: Path) -> None:
    config = json.loads((SCRIPT.parent / "local-autoscaling/cluster.json").read_text())
    config["available_node_types"]["ray.head.default"]["resources"] = {"CPU": "many"}
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--config", str(broken), "--", "true"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    assert "Ray did not start" in done.stderr
    assert "many" in done.stderr
