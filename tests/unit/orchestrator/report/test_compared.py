"""Two sweeps side by side, written by the real store without training."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.reported import SPEC, write_sweep
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.report.compared import compared
from orchestrator.report.outcome import read_outcome


def test_settings_that_two_sweeps_share_are_held_against_each_other(tmp_path: Path) -> None:
    one = write_sweep(tmp_path, name="one")
    other = write_sweep(tmp_path, SPEC.replace("[0.2, 0.5, 0.8]", "[0.5, 0.8, 1.0]"), name="other", failed=1)
    rows = compared([(store.name, read_outcome(store)) for store in (one, other)])
    assert len(rows) == 2 * 2 + 3, "two of three thresholds of right with two of near, and every weight"
    for row in rows:
        found = {
            store.name: [
                trial
                for trial in store.trials().to_pylist()
                if trial["status"] == "succeeded" and trial["kl"] is not None
            ]
            for store in (one, other)
        }
        assert row.sweeps == ("one", "other")
        assert row.first.seeds == 2
        assert row.second.seeds in (1, 2)
        assert any(np.isclose(trial["kl"], row.first.kl, rtol=0.2) for trial in found["one"])
        assert row.first.error > 0
        assert row.error == pytest.approx(np.hypot(row.first.error, row.second.error))
        assert (row.verdict == "not told apart") == (abs(row.difference) <= 1.96 * row.error)


def test_sweeps_of_one_name_are_told_by_their_places(tmp_path: Path) -> None:
    stores = [
        write_sweep(tmp_path / place, name="demo", finished=count) for place, count in (("a", 18), ("b", 12))
    ]
    call = ["frontier", *(store.url() for store in stores)]
    lines = CliRunner().invoke(app, call).stdout.splitlines()
    first = next(row for row, line in enumerate(lines) if line.startswith("setting ")) + 1
    for row, store in enumerate(stores):
        assert store.url() in lines[first + row]
    assert lines[first].startswith("constrained right")
    assert [line for line in lines[first:] if "+0.000" in line], "equal trials"


def test_the_command_shows_and_writes_them(tmp_path: Path) -> None:
    write_sweep(tmp_path, name="one")
    write_sweep(tmp_path, name="other")
    call = ["frontier", "one", "other", "--storage", str(tmp_path)]
    document = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)
    assert [sweep["sweep"] for sweep in document["sweeps"]] == ["one", "other"]
    assert {row["difference"] for row in document["compared"]} == {0.0}
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.stderr
    assert len(document["compared"]) == 9
    assert shown.stdout.count("not told apart") >= 9
    alone = json.loads(
        CliRunner().invoke(app, ["frontier", "one", "--storage", str(tmp_path), "--json"]).stdout
    )
    assert alone["sweep"] == "one"
