"""Compositions of networks by the real command: the shipped sweeps, small, from run to export."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from diffusers import StableDiffusionPipeline
from support.processes import Sweep
from support.sweeps import plannable
from typer.testing import CliRunner

from orchestrator.cli import app
from trainers.adapters.files import CONFIG, WEIGHTS
from trainers.models.pipeline import EMBEDDED_DIRECTORY

SWEEPS = Path(__file__).parents[3] / "sweeps"
SMALL = {
    "sampling.steps": "4",
    "training.steps": "2",
    "training.batch_per_worker": "16",
    "evaluation.images": "16",
}


def run(sweep: Sweep, name: str, **changes: str) -> dict[str, Any]:
    """Run a shipped sweep with few samples; returns the document of the frontier, the same after ``resume``."""
    text = (SWEEPS / f"{name}.yaml").read_text(encoding="utf-8")
    sweep.write(text)
    sweep.name = yaml.safe_load(text)["name"]
    every = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    settings = [part for key, value in every.items() for part in ("--set", f"{key}={value}")]
    done = sweep.run("run", "spec.yaml", *settings, "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert "NaN" not in done.stdout

    again = invoke(sweep, "frontier", sweep.name, "--json")
    assert json.loads(again) == document
    assert (sweep.directory / "figures" / "frontier.svg").stat().st_size > 1000
    files = {path: path.read_bytes() for path in sweep.directory.glob("*/*.parquet")}
    files[sweep.directory / "baseline.parquet"] = (sweep.directory / "baseline.parquet").read_bytes()
    resumed = sweep.ask("resume", sweep.name, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == document
    assert {path: path.read_bytes() for path in files} == files, "nothing is done again"
    return document


def invoke(sweep: Sweep, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--storage", str(sweep.storage)])
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def trials(sweep: Sweep) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows by method and sampler."""
    table: pa.Table = pq.ParquetDataset(sweep.directory / "trials").read()
    rows: list[dict[str, Any]] = table.to_pylist()
    assert [row["error"] for row in rows] == [None] * len(rows)
    return {(row["method"], row["sampler"]): row for row in rows}


def check_rows(sweep: Sweep, rows: Sequence[dict[str, Any]], names: set[str]) -> None:
    """What all compositions have."""
    for row in rows:
        assert row["status"] == "succeeded"
        kls = {name: row[f"kl_{name}"] for name in names}
        assert row["kl"] == max(kls.values())
        shares = "multiplier" if row["method"] == "constrained" else "weight"
        assert sum(row[f"{shares}_{name}"] for name in names) == pytest.approx(1.0)
        for kind in ("kl", "pointwise_kl"):
            for name in names:
                column = f"{kind}_{name}"
                assert row[column] > 0
                assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
        samples = pq.read_table(sweep.directory / "evaluations" / f"{row['trial_id']}.parquet")
        assert samples.num_rows == 16
        assert samples["prompt"].null_count == 0
        assert (samples["kl"].null_count == 0) == (row["sampler"] != "fkc")
        assert (sweep.directory / "images" / f"{row['trial_id']}.png").stat().st_size > 0
        history = sweep.directory / "history" / f"{row['trial_id']}.parquet"
        assert history.exists() == (row["method"] == "constrained")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_adapters(sweep: Sweep, tmp_path: Path) -> None:
    names = {"saturation", "colourfulness", "contrast"}
    document = run(sweep, "compose_adapters", distillation__steps="2", distillation__batch="8")
    assert [(m["method"], m["trials"]) for m in document["methods"]] == [("constrained", 1), ("weighted", 2)]
    assert document["composition"]["models"] == ["saturation", "colourfulness", "contrast"]
    assert "improvement over the pretrained one" in document["sentence"]
    assert document["bound"] is None
    rows = trials(sweep)
    assert set(rows) == {("constrained", "fkc"), ("weighted", "fkc"), ("weighted", "merged")}
    check_rows(sweep, [*rows.values()], names)
    for (_, sampler), row in rows.items():
        for name in names:
            assert row[f"retention_{name}_low"] <= row[f"retention_{name}"] <= row[f"retention_{name}_high"]
        for name in ("saturation", "colourfulness", "local_contrast"):
            assert row[f"reward_{name}_low"] <= row[f"reward_{name}"] <= row[f"reward_{name}_high"]
        assert (row["adapter"] is None) == (sampler == "merged")
        known = {key for key, value in row.items() if key.startswith("distilled_") and value is not None}
        assert (known == set()) == (sampler == "merged")
    sets = pq.read_table(sweep.directory / "baseline.parquet")["set"].to_pylist()
    assert {name: sets.count(name) for name in sets} == dict.fromkeys(
        ["train", "evaluate", *(f"model:{name}" for name in names)], 16
    )

    trial_id = rows["constrained", "fkc"]["trial_id"]
    target = tmp_path / "exported"
    exported = json.loads(invoke(sweep, "export", sweep.name, trial_id[:6], str(target), "--json"))
    assert exported["trial_id"] == trial_id
    assert {path.name for path in target.iterdir()} >= {WEIGHTS, CONFIG}
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_DIRECTORY, safety_checker=None)
    pipeline.load_lora_weights(target)
    assert pipeline.get_active_adapters()
    refused = CliRunner().invoke(
        app,
        [
            "export",
            sweep.name,
            rows["weighted", "merged"]["trial_id"],
            str(tmp_path / "no"),
            "--storage",
            str(sweep.storage),
        ],
    )
    assert refused.exit_code == 2
    assert "has no adapter" in refused.stderr


@pytest.mark.exhaustive
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_concepts(sweep: Sweep) -> None:
    names = {"red", "orange", "square"}
    run(sweep, "compose_concepts")
    assert "<!-- one joint prompt -->" in (sweep.directory / "figures" / "frontier.svg").read_text()
    rows = trials(sweep)
    assert set(rows) == {("constrained", "score"), ("weighted", "score"), ("weighted", "joint")}
    check_rows(sweep, [*rows.values()], names)
    for row in rows.values():
        each = [row[f"reward_clip_{name}"] for name in names]
        assert row["reward_clip_least"] <= min(each)
        assert not any(key.startswith("retention_") for key in row)


@pytest.mark.exhaustive
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_an_or_of_adapters(sweep: Sweep) -> None:
    text = (SWEEPS / "compose_adapters.yaml").read_text(encoding="utf-8")
    spec = yaml.safe_load(text)
    spec["objective"] |= {"direction": "forward"}
    spec["methods"] = spec["methods"][:2]
    sweep.write(yaml.safe_dump(spec))
    sweep.name = spec["name"]
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    done = sweep.run("run", "spec.yaml", *settings, "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    sentence = json.loads(done.stdout)["sentence"]
    assert "exact" not in sentence, "the sampler of an OR is no setting of its own"
    for row in trials(sweep).values():
        assert 0 <= row["kl"] < 1.2, "log 3 at most"
        assert row["pointwise_kl_contrast"] is None
        assert row["retention_contrast"] is not None


def test_an_adapter_that_is_not_exported_yet_is_asked_for(tmp_path: Path) -> None:
    """The sweep of reward-tuned adapters starts from directories that another sweep is exported to."""
    path, alone = SWEEPS / "sd15_compose_rewards.yaml", tmp_path / "alone.yaml"
    shutil.copy(path, alone)
    refused = CliRunner().invoke(app, ["plan", str(alone)])
    assert refused.exit_code == 2
    assert "models.hps.adapter" in refused.stderr
    assert "adapters/hps" in refused.stderr
    planned = CliRunner().invoke(app, ["plan", str(plannable(path, tmp_path)), "--json"])
    assert planned.exit_code == 0, planned.stderr
    assert len(json.loads(planned.stdout)["trials"]) == 6


def test_the_plan_tells_samplers_apart() -> None:
    shown = CliRunner().invoke(app, ["plan", str(SWEEPS / "compose_adapters.yaml")])
    assert shown.exit_code == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if line.startswith("weighted")]
    assert [line.split("  ")[0] for line in lines] == ["weighted, fkc", "weighted, merged"]
