"""Removing sweeps and what nothing refers to, and one trial shown whole: in directories written by the real store."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.reported import SPEC, write_sweep
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.plan import base_config
from orchestrator.report.status import counts
from orchestrator.report.sweep import read_spec
from orchestrator.results.sample_cache import samples_key
from orchestrator.results.schema import VERSION_KEY
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A finished sweep, one with a trial to go, samples of the first and of nobody, and what an older cdsweep left."""
    folder = tmp_path / "results"
    done, half = write_sweep(folder, failed=1), write_sweep(folder, name="half", finished=17)
    samples = folder / ".samples"
    samples.mkdir()
    for key in (samples_key(base_config(read_spec(done))), "0123456789abcdef"):
        for end in ("json", "parquet"):
            (samples / f"{key}.{end}").write_bytes(b"x" * 1000)
    for store in (done, half):
        for trial in store.plan()["trials"]:
            store.save_checkpoint(trial["trial_id"], 20, {"a": b"y" * 500})
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_what_nothing_refers_to_is_listed_and_removed(storage: Path) -> None:
    half = SweepStore(str(storage), "half")
    (open_trial,) = {trial["trial_id"] for trial in half.plan()["trials"]} - half.finished()
    document = json.loads(call("gc", "--storage", str(storage), "--json").stdout)
    assert (document["removed"], len(document["garbage"])) == (False, 18 + 17 + 1)
    assert document["bytes"] > 35 * 500 + 2000
    assert len(names(storage / ".samples")) == 4, "it was only listed"

    refused = call("gc", "--storage", str(storage))
    assert refused.exit_code == 2
    assert "nobody is there to be asked" in refused.stderr
    assert len(names(storage / ".samples")) == 4

    done = call("gc", "--storage", str(storage), "--yes")
    assert done.exit_code == 0, done.stderr
    assert "samples 0123456789abcdef" in done.stdout
    assert len(names(storage / ".samples")) == 2
    assert half.load_checkpoint(open_trial) is not None, "it goes on from there"
    assert not list((storage / "demo" / "checkpoints").rglob("manifest.json"))
    assert "there is nothing to remove" in call("gc", "--storage", str(storage), "--yes").stdout


@pytest.mark.parametrize(("rounds", "left"), [(3, 18), (1, 1)])
def test_checkpoints_that_a_search_may_go_on_from_stay(storage: Path, rounds: int, left: int) -> None:
    text = SPEC.replace("{grid: [0.2, 0.5, 0.8]}", "{range: [0.2, 0.8]}").replace("{grid: [0.2, 0.5]}", "0.2")
    text += f"search: {{kind: certified, tolerance: 0.1, rounds: {rounds}}}\n"
    (storage / "half" / "spec.yaml").write_text(dump_spec(parse_spec(text, overrides=["name=half"])))
    done = call("gc", "--storage", str(storage), "--yes")
    assert done.exit_code == 0, done.stderr
    assert len(list((storage / "half" / "checkpoints").rglob("manifest.json"))) == left


def test_what_a_sweep_that_cannot_be_read_may_refer_to_stays(storage: Path) -> None:
    (storage / "half" / "spec.yaml").write_text("name: [")
    done = call("gc", "--storage", str(storage), "--yes")
    assert done.exit_code == 0, done.stderr
    assert "half cannot be read" in done.stderr
    assert len(names(storage / ".samples")) == 4
    assert list((storage / "half" / "checkpoints").rglob("manifest.json"))
    assert not list((storage / "demo" / "checkpoints").rglob("manifest.json"))


def test_a_sweep_is_removed_when_it_is_meant(storage: Path) -> None:
    refused = call("rm", "demo", "--storage", str(storage))
    assert refused.exit_code == 2
    assert "with 18 results" in refused.stderr
    assert (storage / "demo" / "spec.yaml").is_file()
    done = call("rm", "demo", "--storage", str(storage), "--yes", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["sweep"] == "demo"
    assert names(storage) == {"half", ".samples"}
    assert call("rm", "demo", "--storage", str(storage), "--yes").exit_code == 2


def test_a_trial_is_described_with_the_reason_of_its_end(storage: Path) -> None:
    store = SweepStore(str(storage), "demo")
    rows = {row["status"]: row for row in store.trials().to_pylist()}
    for status, row in rows.items():
        document = json.loads(
            call("describe", "demo", row["trial_id"], "--storage", str(storage), "--json").stdout
        )
        assert (document["status"], document["error"]) == (status, row["error"])
        assert document["row"]["steps"] == row["steps"]
        assert document["config"]["seed"] == row["seed"]
        shown = call("describe", "demo", row["trial_id"][:6], "--storage", str(storage)).stdout
        assert shown.startswith(f"{row['trial_id']}  {status}: ")
        assert (row["error"] or "steps") in shown


def test_a_trial_that_has_not_finished_is_described_too(storage: Path) -> None:
    half = SweepStore(str(storage), "half")
    (open_trial,) = {trial["trial_id"] for trial in half.plan()["trials"]} - half.finished()
    document = json.loads(call("describe", "half", open_trial, "--storage", str(storage), "--json").stdout)
    assert (document["status"], document["checkpoint_step"], document["row"]) == ("interrupted", 20, None)
    half.drop_checkpoints(open_trial)
    document = json.loads(call("describe", "half", open_trial, "--storage", str(storage), "--json").stdout)
    assert (document["status"], document["checkpoint_step"]) == ("planned", None)


def test_a_broken_or_newer_sweep_does_not_hide_the_others(storage: Path) -> None:
    damaged, newer, odd = (storage / name for name in ("damaged", "newer", "no name"))
    for folder in (damaged, newer, odd):
        shutil.copytree(storage / "half", folder)
    (damaged / "plan.json").write_text("[")
    row = next((newer / "trials").glob("*.parquet"))
    table = pq.read_table(row)
    pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"99"}), row)
    half = SweepStore(str(storage), "half")
    half.write_journal(
        {
            "state": "stopped",
            "planned": 18,
            "running": [],
            "updated_at": "2030-01-01T10:00:00+00:00",
            **counts(half.trials()),
        }
    )
    done = call("list", "--storage", str(storage), "--json")
    assert done.exit_code == 0, done.stderr
    sweeps = {sweep["sweep"]: sweep for sweep in json.loads(done.stdout)["sweeps"]}
    assert {name: sweep["state"] for name, sweep in sweeps.items()} == {
        "half": "stopped", "demo": "finished", "damaged": "unreadable", "newer": "unreadable", "no name": "unreadable",
    }  # fmt: skip
    assert list(sweeps)[:2] == ["half", "demo"], "by date, the newest first"
    assert "version 99" in sweeps["newer"]["problem"]
    shown = call("list", "--storage", str(storage))
    assert "2030-01-01 10:00" in shown.stdout
    assert "warning: damaged: " in shown.stderr


def test_a_storage_that_is_not_there_is_an_error(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        ["list"],
        ["gc", "--json"],
        ["status", "demo"],
        ["frontier", "demo"],
        ["rm", "demo", "--yes"],
    ):
        done = call(*command, "--storage", f"{storage}x")
        assert done.exit_code == 2, command
        assert "there is no" in done.stderr, command
    (storage.parent / "elsewhere").mkdir()
    monkeypatch.chdir(storage.parent / "elsewhere")
    assert call("list").exit_code == 0, "nothing has run here yet"
