"""Ray's dashboard, Prometheus, trackers and a browser, all real, around real runs on one cluster of their own."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from playwright.sync_api import ConsoleMessage, Page, sync_playwright
from support.browser import ARTIFACTS, CHROMIUM
from support.clusters.launched import head, variables
from support.processes import CDSWEEP, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from orchestrator.report.dashboard import grafana, names
from orchestrator.spec.load import parse_spec

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.xdist_group("dashboard"),
    pytest.mark.timeout(900),
]

MIXTURE = """\
model:
  mixture:
    weights: [0.6, 0.4]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
sampling: {steps: 12}
convergence: {tolerance: 1.0e-9}
"""

WATCHED = """\
name: watched
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {range: [0.3, 0.8]}, unit: absolute}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: {range: [-1.6, -0.9]}, unit: absolute}
search: {kind: certified, tolerance: 0.01, max_trials: 2, rounds: 1}
training: {steps: 100, batch_per_worker: 64, width: 16}
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

LIVE = """\
name: live
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.2, 0.4, 0.6, 0.8]}, unit: absolute}
# Long enough for a page to be opened meanwhile, however quick the machine.
training: {steps: 1500, batch_per_worker: 64, width: 16}
evaluation: {images: 256, every: 20}
"""


# ------------------------------------------------------------------------------------------- servers


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], folder: Path, log: str, **environment: str) -> Iterator[None]:
    """Run a server for the length of a block; its children end with it."""
    with (folder / log).open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    try:
        yield
    finally:
        family = (
            [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
        )
        for member in family:
            member.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Any]:
    """A head with the cdsweep page; it reports metrics every second in place of ten, so that tests need not wait."""
    enabled = subprocess.run(
        [CDSWEEP, "dashboard", "enable", "--json"], check=True, capture_output=True, text=True
    )
    environment = {
        **json.loads(enabled.stdout),
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str(folder / "watch/dashboards"),
        "RAY_GRAFANA_DATA_DASHBOARD_UID": grafana.UID,
    }
    with head(2, environment) as found:
        # Written a while after Ray has started; `cdsweep dashboard files` is for when the head is up.
        wait_for(
            lambda: _ends_as_json(folder / "watch/dashboards/data_grafana_dashboard.json"), 60, "Ray's own"
        )
        yield found


def _ends_as_json(path: Path) -> bool:
    """Whether a file that another process writes is whole."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


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
def prometheus(cluster: Any, folder: Path) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs the Debian package prometheus")
    wrote = subprocess.run(
        [CDSWEEP, "dashboard", "files", "watch", "--ray-directory", cluster.folder, "--scrape-seconds", "1"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR={folder}/watch/dashboards" in wrote.stdout
    server = Prometheus(f"http://127.0.0.1:{free_port()}")
    command = [
        program,
        "--config.file=watch/prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={server.url.removeprefix('http://')}",
    ]
    with running(command, folder, "prometheus.log"):
        wait_for(lambda: server.query("up == 1"), 60, "Prometheus scrapes Ray")
        yield server


@pytest.fixture(scope="module")
def mlflow_server(folder: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ),
        *(
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "artifacts"),
        ),
    ]

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310 - loopback
                return bool(answer.status == 200)
        except OSError:
            return False

    with running(command, folder, "mlflow.log", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"):
        wait_for(healthy, 120, "MLflow answers")
        yield url


def start(
    cluster: Any, folder: Path, text: str, *options: str, **environment: str
) -> "subprocess.Popen[str]":
    name = parse_spec(text).name
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return subprocess.Popen(
        [CDSWEEP, "run", f"{name}.yaml", "--address", cluster.address, *options],
        cwd=folder,
        env=variables(cluster) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a run; returns what it said on stderr."""
    try:
        _, errors = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return errors


@pytest.fixture(scope="module")
def watched(cluster: Any, prometheus: Prometheus, mlflow_server: str, folder: Path) -> Path:
    """The directory of a sweep that ran while everybody watched; a composition ran after it."""
    trackers = (
        f"trackers: [tensorboard, {{mlflow: {{tracking_uri: '{mlflow_server}', experiment: tests}}}}, "
        "{wandb: {project: tests, mode: offline}}]\n"
    )
    said = finish(start(cluster, folder, WATCHED + MIXTURE + trackers))
    assert "warning" not in said
    finish(start(cluster, folder, COMPOSITION))
    return folder / "results/watched"


def rows_of(sweep: Path) -> dict[str, dict[str, Any]]:
    rows = [pq.read_table(path).to_pylist()[0] for path in (sweep / "trials").glob("*.parquet")]
    return {row["trial_id"]: row for row in rows}


# ------------------------------------------------------------------------------------------- metrics


def answered(prometheus: Prometheus, expression: str, constraint: str) -> bool:
    """Whether an expression of the dashboard, its variables set, has data in the last half hour."""
    for name, value in {"$sweep": ".+", "$constraint": constraint, "$__range": "30m"}.items():
        expression = expression.replace(name, value)
    if expression.startswith("label_values("):
        series, _, label = expression.removeprefix("label_values(").removesuffix(")").rpartition(", ")
        return bool(prometheus.get(f"label/{label}/values", **{"match[]": series}))
    return bool(prometheus.query(f"last_over_time(({expression})[30m:1s])"))


def test_a_run_answers_every_query_of_the_dashboard_and_its_gauges_end(
    watched: Path, prometheus: Prometheus, folder: Path
) -> None:
    trials = set(rows_of(watched))
    assert len(trials) >= 2
    wait_for(
        lambda: not prometheus.query(f'{names.STEP.exported}{{sweep=~"watched|composed"}}'),
        60,
        "gauges of finished trials end",
    )
    # Ray was told our uid for its second tab, so ours stands in the place of Ray's file.
    document = json.loads((folder / "watch/dashboards/data_grafana_dashboard.json").read_text())
    assert document["title"] == grafana.TITLE
    assert (folder / "watch/dashboards/default_grafana_dashboard.json").exists(), "Ray's own are beside it"
    for expression in grafana.expressions(document):
        assert answered(prometheus, expression, "right"), expression
    for metric in names.ALL:
        assert prometheus.query(f"last_over_time({metric.recorded}[30m])"), metric
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert not [rule for rule in rules if rule["health"] == "err"]

    # The scatter plot has every trial of both rewards, with the same tags on both axes.
    scatter = next(panel for panel in document["panels"] if panel["type"] == "xychart")
    for name in ("right", "near"):
        tags = []
        for target in scatter["targets"]:
            filled = target["expr"].replace("$sweep", "watched").replace("$constraint", name)
            points = prometheus.query(filled.replace("$__range", "30m"))
            tags.append({tuple(sorted(point["metric"].items())) for point in points})
            assert {point["metric"]["trial"] for point in points} == trials
        assert tags[0] == tags[1]


# ------------------------------------------------------------------------------------------- trackers


def test_mlflow_has_parameters_steps_rows_and_tags(watched: Path, mlflow_server: str) -> None:
    client = MlflowClient(tracking_uri=mlflow_server)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = {run.data.tags["trial"]: run for run in client.search_runs([experiment.experiment_id])}
    rows = rows_of(watched)
    assert runs.keys() == rows.keys()
    for trial_id, run in runs.items():
        row = rows[trial_id]
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"watched/{trial_id}"
        assert run.data.tags["sweep"] == "watched"
        assert run.data.tags["method"] == run.data.params["method"] == row["method"]
        assert float(run.data.params["threshold_right"]) == pytest.approx(row["threshold_right"])
        assert run.data.metrics["final_kl"] == pytest.approx(row["kl"])
        steps = pq.read_table(watched / "history" / f"{trial_id}.parquet").to_pylist()
        for metric in ("kl", "learning_rate", "multiplier_near"):
            logged = {point.step: point.value for point in client.get_metric_history(run.info.run_id, metric)}
            assert logged == pytest.approx({step["step"]: step[metric] for step in steps}, rel=1e-6)


def test_tensorboard_reads_the_event_files(watched: Path) -> None:
    for trial_id, row in rows_of(watched).items():
        events = EventAccumulator(str(watched / "tensorboard" / trial_id))
        events.Reload()
        steps = pq.read_table(watched / "history" / f"{trial_id}.parquet").to_pylist()
        logged = {event.step: event.value for event in events.Scalars("ray/tune/reward_right")}
        assert logged == pytest.approx({step["step"]: step["reward_right"] for step in steps}, rel=1e-4)
        assert events.Scalars("ray/tune/final/kl")[-1].value == pytest.approx(row["kl"], rel=1e-4)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: protobuf messages in a LevelDB log, after a header of seven bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # the rest of a block is empty
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_an_offline_wandb_run_can_be_read_back(watched: Path) -> None:
    rows = rows_of(watched)
    runs = {}
    for path in (watched / "wandb").glob("offline-run-*/run-*.wandb"):
        records = list(wandb_records(path))
        run = next(record.run for record in records if record.HasField("run"))
        history = [
            {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            for record in records
            if record.HasField("history")
        ]
        runs[run.run_id] = (run, history, records)
    sweep_id = json.loads((watched / "trackers.json").read_text())["sweep_id"]
    assert runs.keys() == {f"watched-{trial_id}-{sweep_id}" for trial_id in rows}
    for trial_id, row in rows.items():
        run, history, records = runs[f"watched-{trial_id}-{sweep_id}"]
        assert (run.project, run.run_group, run.job_type) == ("tests", "watched", row["method"])
        assert f"trial:{trial_id}" in run.tags
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["threshold_near"] == pytest.approx(row["threshold_near"])
        steps = pq.read_table(watched / "history" / f"{trial_id}.parquet").to_pylist()
        logged = {point["_step"]: point["kl"] for point in history if "kl" in point}
        assert logged == pytest.approx({step["step"]: step["kl"] for step in steps}, rel=1e-6)
        summary = {
            (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
            for record in records
            if record.HasField("summary")
            for item in record.summary.update
        }
        assert summary["final_kl"] == pytest.approx(row["kl"])


@pytest.mark.exhaustive
def test_a_tracker_that_is_not_there_changes_nothing_but_a_line(cluster: Any, folder: Path) -> None:
    text = WATCHED.replace("watched", "alone").replace("max_trials: 2", "max_trials: 1") + MIXTURE
    nobody = f"http://127.0.0.1:{free_port()}"
    said = finish(start(cluster, folder, text, CDSWEEP_TRACKERS="mlflow", MLFLOW_TRACKING_URI=nobody))
    warnings = [line for line in said.splitlines() if line.startswith("warning: mlflow")]
    assert "could not log a trial's begin" in warnings[0]
    assert "has not got" in warnings[-1]
    assert len(warnings) == 2
    assert {row["status"] for row in rows_of(folder / "results/alone").values()} == {"succeeded"}


# ------------------------------------------------------------------------------------------- the page


def token(cluster: Any) -> str:
    return Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:  # noqa: S310 - loopback
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


PATHS = ("/cdsweep", "/cdsweep/page.js", "/cdsweep/report.js", "/cdsweep/report.css", "/api/cdsweep/sweeps")


def test_everything_is_behind_the_dashboards_token(cluster: Any) -> None:
    for path in (*PATHS, "/api/cdsweep/sweeps/0000000000000000"):
        assert status(cluster.dashboard + path) == 401, path
        assert status(cluster.dashboard + path, Authorization="Bearer wrong") == 403, path
    for path in PATHS:
        assert status(cluster.dashboard + path, Authorization=f"Bearer {token(cluster)}") == 200, path
    for path in ("/cdsweep/../etc/passwd", "/cdsweep/nothing.js", "/api/cdsweep/sweeps/0000000000000000"):
        assert status(cluster.dashboard + path, Authorization=f"Bearer {token(cluster)}") == 404, path


@contextmanager
def browser(cluster: Any, width: int, height: int) -> Iterator[tuple[Page, list[str]]]:
    """A page that has logged in the way Ray's own front end does, and what its console complains of."""
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    options += " --disable-component-update --disable-sync"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options.split())
        context = chromium.new_context(viewport={"width": width, "height": height})
        login = context.request.post(
            f"{cluster.dashboard}/api/authenticate", headers={"Authorization": f"Bearer {token(cluster)}"}
        )
        assert login.ok
        page, complaints = context.new_page(), list[str]()

        def heard(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                complaints.append(message.text)

        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page, complaints
        chromium.close()


def kept(name: str) -> Path:
    """Where a screenshot goes."""
    place = ARTIFACTS / "dashboard"
    place.mkdir(parents=True, exist_ok=True)
    return place / f"{name}.png"


@pytest.mark.exhaustive
@pytest.mark.skipif(CHROMIUM is None, reason="needs the Debian package chromium")
def test_the_page_of_a_running_sweep_gains_points(cluster: Any, folder: Path) -> None:
    counts: list[int] = []
    run = start(cluster, folder, LIVE + MIXTURE, "--yes")
    try:
        with browser(cluster, 1280, 900) as (page, complaints):
            page.goto(f"{cluster.dashboard}/cdsweep")
            page.locator("#sweep option", has_text="live (").wait_for(state="attached", timeout=300_000)
            page.select_option("#sweep", label=page.locator("#sweep option", has_text="live (").inner_text())
            # Until its document is there the sweep that was listed first is still drawn.
            page.locator("h1", has_text=re.compile("^live$")).wait_for(timeout=300_000)
            end = time.monotonic() + 400
            while time.monotonic() < end and (not counts or counts[-1] < 4):
                found = page.locator(".points [data-trial]").count()
                if not counts or found != counts[-1]:
                    counts.append(found)
                page.wait_for_timeout(100)
            page.locator("#sweep option", has_text="live (finished, 4 of 4 trials)").wait_for(
                state="attached", timeout=60_000
            )
            page.screenshot(path=kept("desktop"), full_page=True)
            assert complaints == []
    finally:
        finish(run)
    assert counts[-1] == 4, counts
    assert len(counts) >= 3, "points came one after the other while the sweep ran"
    assert counts == sorted(counts)

    with browser(cluster, 390, 844) as (page, complaints):
        page.goto(f"{cluster.dashboard}/cdsweep")
        page.locator("#sweep option", has_text="live (").wait_for(state="attached", timeout=60_000)
        page.select_option("#sweep", label=page.locator("#sweep option", has_text="live (").inner_text())
        page.locator(".points [data-trial]").nth(3).wait_for(timeout=60_000)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            "no sideways scrolling"
        )
        page.screenshot(path=kept("phone"), full_page=True)
        assert complaints == []


MISSING = """\
import builtins
_import = builtins.__import__

def without(name, globals=None, locals=None, fromlist=(), level=0):
    page = "orchestrator.execution.dashboard_page.module"
    if (globals or {}).get("__name__") == page and "DashboardHeadModule" in (fromlist or ()):
        raise ImportError(f"cannot import name 'DashboardHeadModule' from {name!r}")
    return _import(name, globals, locals, fromlist, level)

builtins.__import__ = without
"""


@pytest.mark.exhaustive
def test_rays_dashboard_starts_without_the_page_where_its_base_class_is_missing(tmp_path: Path) -> None:
    # Another sitecustomize, which ours must run too, plays a Ray without that class.
    (tmp_path / "sitecustomize.py").write_text(MISSING)
    enabled = subprocess.run(
        [CDSWEEP, "dashboard", "enable", "--json"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    # The other head's variables stand in this process: its folder of dashboards is not to be written again.
    apart = {"RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str(tmp_path / "dashboards")}
    with head(1, json.loads(enabled.stdout) | apart) as found:
        bearer = f"Bearer {token(found)}"
        wait_for(
            lambda: status(f"{found.dashboard}/api/version", Authorization=bearer) == 200, 60, "the dashboard"
        )
        assert status(f"{found.dashboard}/cdsweep", Authorization=bearer) == 404
        log = (found.folder / "session_latest/logs/cdsweep_page.log").read_text()
        assert log.startswith("cdsweep: no page in Ray's dashboard: ImportError: cannot import name")
