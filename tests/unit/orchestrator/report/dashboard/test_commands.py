"""The commands of `cdsweep dashboard`: what a shell and a script get."""

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.report.dashboard import grafana


def test_enable_prints_a_line_that_a_shell_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/with space")
    result = CliRunner().invoke(app, ["dashboard", "enable"])
    assert result.exit_code == 0
    seen = subprocess.run(
        ["/bin/sh", "-c", f'{result.stdout}\nprintf "%s" "$PYTHONPATH"'],
        capture_output=True,
        text=True,
        check=True,
    )
    hook, other = seen.stdout.split(":")
    assert (Path(hook) / "sitecustomize.py").exists()
    assert other == "/with space"
    as_json = json.loads(CliRunner().invoke(app, ["dashboard", "enable", "--json"]).stdout)
    assert as_json == {"PYTHONPATH": seen.stdout}


def test_files_are_written_and_listed(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["dashboard", "files", str(tmp_path / "watch"), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert all(Path(path).exists() for path in document["files"])
    assert document["environment"] == {
        "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str(tmp_path / "watch/dashboards"),
        "RAY_GRAFANA_DATA_DASHBOARD_UID": grafana.UID,
    }


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["dashboard", "files", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert f"cannot write {tmp_path / 'file'}" in result.stderr
