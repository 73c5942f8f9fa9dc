"""What Prometheus and Grafana are given, file by file.

If a change is meant, accept it with

    CDSWEEP_ACCEPT_GOLDEN=1 .venv/bin/pytest tests/golden/test_dashboard_files.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.report.dashboard import grafana, names, prometheus
from orchestrator.report.dashboard.files import write_files

GOLDEN = Path(__file__).with_name("dashboard")


def test_the_files_are_the_recorded_ones(tmp_path: Path) -> None:
    for path in write_files(tmp_path):
        recorded = GOLDEN / path.name
        if os.environ.get("CDSWEEP_ACCEPT_GOLDEN"):
            GOLDEN.mkdir(exist_ok=True)
            shutil.copy(path, recorded)
        assert path.read_text() == recorded.read_text(), f"{path.name} moved; to accept: see {__file__}"


def test_every_metric_has_a_panel_and_a_recorded_series() -> None:
    queries = " ".join(grafana.expressions(grafana.dashboard()))
    for metric in names.ALL:
        assert metric.exported in queries
        assert f"record: {metric.recorded}\n" in prometheus.rules()


def test_panels_do_not_overlap_and_have_their_own_ids() -> None:
    panels = grafana.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_the_dashboard_takes_the_place_of_rays_own_where_ray_was_told_its_uid(tmp_path: Path) -> None:
    write_files(tmp_path)
    ours, rays = (tmp_path / "dashboards" / f"{name}_grafana_dashboard.json" for name in ("cdsweep", "data"))
    rays.write_text(json.dumps({"uid": "rayDataDashboard"}))
    write_files(tmp_path)
    assert json.loads(rays.read_text()) == {"uid": "rayDataDashboard"}
    assert ours.exists()
    rays.write_text(json.dumps({"uid": grafana.UID}))
    write_files(tmp_path)
    assert json.loads(rays.read_text())["title"] == grafana.TITLE
    assert not ours.exists(), "Grafana takes a uid once"


ALERTS = """\
rule_files: [cdsweep_rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      # One trial steps on; one stands still; one stood still and has ended.
      - {series: 'ray_cdsweep_step{sweep="s", trial="moves", method="constrained", WorkerId="1"}', values: '0+1x60'}
      - {series: 'ray_cdsweep_step{sweep="s", trial="stands", method="constrained", WorkerId="2"}', values: '7+0x60'}
      - series: 'ray_cdsweep_step{sweep="s", trial="ended", method="constrained", WorkerId="3"}'
        values: '5+0x25 stale'
      - series: 'ray_cdsweep_violation{sweep="s", trial="moves", method="constrained", constraint="clip"}'
        values: '0.2+0x60'
      - series: 'ray_cdsweep_multiplier{sweep="s", trial="moves", method="constrained", constraint="clip"}'
        values: '0+1x60'
      - series: 'ray_cdsweep_violation{sweep="s", trial="moves", method="constrained", constraint="met"}'
        values: '-0.2+0x60'
      - series: 'ray_cdsweep_multiplier{sweep="s", trial="moves", method="constrained", constraint="met"}'
        values: '0+1x60'
      - {series: 'ray_cdsweep_trials{sweep="s", status="failed"}', values: '0x30 2x30'}
      - {series: 'ray_cdsweep_trials{sweep="s", status="planned"}', values: '9+0x60'}
      - {series: 'ray_cdsweep_trials{sweep="starved", status="planned"}', values: '4+0x60'}
      - {series: 'ray_cdsweep_trials{sweep="starved", status="succeeded"}', values: '1+0x60'}
      - {series: 'ray_cdsweep_trials{sweep="done", status="planned"}', values: '4+0x60'}
      - {series: 'ray_cdsweep_trials{sweep="done", status="succeeded"}', values: '4+0x60'}
    alert_rule_test:
      - alertname: CdsweepTrialStuck
        eval_time: 40m
        exp_alerts:
          - exp_labels: {severity: warning, sweep: s, trial: stands, method: constrained}
            exp_annotations: {summary: Trial stands of s has been at step 7 for 20 minutes.}
      - alertname: CdsweepThresholdOutOfReach
        eval_time: 40m
        exp_alerts:
          - exp_labels: {severity: info, sweep: s, trial: moves, method: constrained, constraint: clip}
            exp_annotations:
              summary: "Trial moves of s has missed clip by at least 0.2 for 30 minutes, and its multiplier still rises:
                the threshold may be out of reach."
      - alertname: CdsweepTrialsFailed
        eval_time: 20m
        exp_alerts: []
      - alertname: CdsweepTrialsFailed
        eval_time: 40m
        exp_alerts:
          - exp_labels: {severity: warning, sweep: s, status: failed}
            exp_annotations: {summary: 2 trial(s) of s have failed.}
      - alertname: CdsweepNothingRuns
        eval_time: 40m
        exp_alerts:
          - exp_labels: {severity: warning, sweep: starved}
            exp_annotations:
              summary: "starved has trials left, and none has trained for 15 minutes: is there room for one?"
"""


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs the Debian package prometheus")
def test_promtool_accepts_the_files_and_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "alerts.yml").write_text(ALERTS)
    for command in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "cdsweep_rules.yml"],
        ["test", "rules", "alerts.yml"],
    ):
        done = subprocess.run(
            [str(shutil.which("promtool")), *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
