"""`cdsweep report` as its users meet it: paths, JSON on stdout alone, warnings, messages."""

import json
from pathlib import Path

import pytest
from support.reported import write_sweep
from typer.testing import CliRunner

from orchestrator.cli import app


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_it_writes_one_file_and_says_where(runner: CliRunner, tmp_path: Path) -> None:
    write_sweep(tmp_path, finished=4)
    result = runner.invoke(app, ["report", "demo", "--storage", str(tmp_path), "--no-figures"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path}/demo/report.html\n"
    assert not (tmp_path / "demo" / "figures").exists()


def test_json_has_the_paths_and_what_could_not_be_read(runner: CliRunner, tmp_path: Path) -> None:
    write_sweep(tmp_path, finished=0)
    (tmp_path / "demo" / "trials").mkdir()
    (tmp_path / "demo" / "trials" / "odd.parquet").write_bytes(b"odd")
    result = runner.invoke(app, ["report", str(tmp_path / "demo"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["report"] == str(tmp_path / "demo" / "report.html")
    assert Path(found["report"]).stat().st_size == found["bytes"]
    assert [Path(path).name for path in found["figures"]] == ["frontier.svg", "frontier.png"]
    assert all(Path(path).exists() for path in found["figures"])
    assert "odd.parquet: damaged, skipped" in found["problems"][0]
    assert "warning: " in result.stderr


def test_no_such_sweep_is_one_message(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(app, ["report", "dmeo", "--storage", str(tmp_path)])
    assert result.exit_code == 2
    assert "no sweep 'dmeo'" in result.stderr
