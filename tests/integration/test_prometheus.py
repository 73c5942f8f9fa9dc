"""A real Prometheus scrapes a real run: every query of the shipped dashboard has an answer, and gauges end."""

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.clusters import head, variables
from support.processes import CDSWEEP, wait_for

from orchestrator.report.dashboard import grafana, names

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs the Debian package prometheus"),
]

MIXTURES = """\
name: watched
model:
  mixture:
    weights: [0.6, 0.4]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
sampling: {steps: 12}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {range: [0.3, 0.8]}, unit: absolute}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: {range: [-1.6, -0.9]}, unit: absolute}
search: {kind: certified, tolerance: 0.01, max_trials: 3}
training: {steps: 150, batch_per_worker: 64, width: 16}
convergence: {tolerance: 1.0e-9}
evaluation: {images: 256, every: 10}
"""

COMPOSITION = """\
name: composed
models:
  a: {mixture: {weights: [1.0], means: [[-1.0, 0.0]], covariances: [[[0.5, 0.0], [0.0, 0.5]]]}}
  b: {mixture: {weights: [1.0], means: [[1.2, 0.0]], covariances: [[[0.6, 0.0], [0.0, 0.4]]]}}
objective: {minmax_kl: [a, b], direction: reverse}
training: {steps: 20}
evaluation: {images: 256}
"""


@dataclass
class Prometheus:
    """The API of a running server."""

    url: str

    def get(self, path: str, **query: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
                return json.load(answer)["data"]
        except OSError:
            return None

    def query(self, expression: str) -> list[Any]:
        found = self.get("query", query=expression)
        return found["result"] if found else []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    # A report every second in place of ten, so that the test need not wait.
    with head(2, {"RAY_metrics_report_interval_ms": "1000"}) as found:
        yield found


@pytest.fixture
def prometheus(cluster: Any, tmp_path: Path) -> Iterator[Prometheus]:
    wrote = subprocess.run(
        [CDSWEEP, "dashboard", "files", "watch", "--ray-directory", cluster.folder, "--scrape-seconds", "1"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "watch/prometheus.yml" in wrote.stdout
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(shutil.which("prometheus")),
                "--config.file=watch/prometheus.yml",
                "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        wait_for(lambda: server.query("up == 1"), 60, "Prometheus scrapes Ray")
        yield server
    finally:
        process.terminate()
        process.wait(30)


def answered(prometheus: Prometheus, expression: str, constraint: str) -> bool:
    """Whether an expression of the dashboard, its variables set, has data in the last ten minutes."""
    for name, value in {"$sweep": ".+", "$constraint": constraint, "$__range": "10m"}.items():
        expression = expression.replace(name, value)
    if expression.startswith("label_values("):
        series, _, label = expression.removeprefix("label_values(").removesuffix(")").rpartition(", ")
        return bool(prometheus.get(f"label/{label}/values", **{"match[]": series}))
    return bool(prometheus.query(f"last_over_time(({expression})[10m:1s])"))


def test_a_run_answers_every_query_of_the_dashboard_and_its_gauges_end(
    cluster: Any, prometheus: Prometheus, tmp_path: Path
) -> None:
    for name, text in (("watched", MIXTURES), ("composed", COMPOSITION)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        ran = subprocess.run(
            [CDSWEEP, "run", f"{name}.yaml", "--address", cluster.address],
            cwd=tmp_path,
            env=variables(cluster),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    trials = {path.stem for path in (tmp_path / "results/watched/trials").glob("*.parquet")}
    assert len(trials) >= 2

    # As written, at the end of the run: nothing of a finished trial is exported any more.
    wait_for(lambda: not prometheus.query(names.STEP.exported), 30, "gauges of finished trials end")
    (file,) = (tmp_path / "watch/dashboards").glob("*.json")
    document = json.loads(file.read_text())
    for expression in grafana.expressions(document):
        assert answered(prometheus, expression, "right"), expression
    for rule in (metric.recorded for metric in names.ALL):
        assert prometheus.query(f"last_over_time({rule}[10m])"), rule
    assert not [rule for rule in all_rules(prometheus) if rule["health"] == "err"]

    # The scatter plot has every trial of both rewards, with the same tags on both axes.
    scatter = next(panel for panel in document["panels"] if panel["type"] == "xychart")
    kl, reward = (target["expr"] for target in scatter["targets"])
    for name in ("right", "near"):
        points = []
        for expression in (kl, reward):
            filled = expression.replace("$sweep", "watched").replace("$constraint", name)
            found = prometheus.query(filled.replace("$__range", "10m"))
            points.append({tuple(sorted(point["metric"].items())) for point in found})
            assert {dict(point["metric"])["trial"] for point in found} == trials
        assert points[0] == points[1]


def all_rules(prometheus: Prometheus) -> list[Any]:
    found = prometheus.get("rules")
    return [rule for group in found["groups"] for rule in group["rules"]]
