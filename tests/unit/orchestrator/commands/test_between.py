"""``pick --measure``: adapters between finished trials, measured once and finished points from then on."""

import json
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny_pipeline
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.execution.trials.ports import StorePort
from orchestrator.execution.trials.trial import record
from orchestrator.frontier.problems import exact_baseline
from orchestrator.plan import Plan, PlannedTrial, base_config, make_job, make_plan
from orchestrator.report.page.document import report_document
from orchestrator.report.sweep import read_plan
from orchestrator.results.schema import samples_table
from orchestrator.results.store import SweepStore
from orchestrator.spec import dump_spec, load_spec
from trainers.adapters.files import CARD
from trainers.alignment.outcome import measured
from trainers.config import BaselineStatistics
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.trial_io import LocalTrialIO
from trainers.types import TrialOutcome

SPEC = """\
name: tiny
model: {pretrained: PIPELINE, lora: {rank: 2, targets: [conv_out]}}
prompts: {train: [red circle, blue square, green triangle], evaluate: [red square, blue circle]}
sampling: {steps: 4, rest: 1, guidance: 6.0}
constraints:
  - {reward: brightness, at_least: {grid: [0.1, 0.3]}, unit: sigma}
training: {steps: 2, batch_per_worker: 2}
evaluation: {images: 96, baseline_images: 192, every: 2}
storage: STORAGE
"""
MIXTURE = """\
name: exact
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {grid: [0.2, 1.0]}}
storage: STORAGE
"""


def created(folder: Path, text: str) -> tuple[SweepStore, Plan, BaselineStatistics]:
    path = folder / "spec.yaml"
    path.write_text(text.replace("STORAGE", str(folder / "results")))
    spec = load_spec(str(path))
    plan, config = make_plan(spec), base_config(spec)
    store, baseline = SweepStore(spec.storage, spec.name), exact_baseline(config)
    samples = None if baseline is not None else sample_pretrained(config)
    baseline = baseline or statistics(samples or {})
    document = plan.to_json(baseline=baseline)
    store.create(dump_spec(spec), document, baseline.model_dump(mode="json"))
    if samples is not None:
        store.write_baseline(samples_table(config, samples), baseline.model_dump(mode="json"), document)
    return store, plan, baseline


def finished(
    store: SweepStore, trial: PlannedTrial, baseline: BaselineStatistics, files: dict[str, bytes]
) -> TrialOutcome:
    job = make_job(trial, baseline)
    outcome = measured(job, files, reference=StorePort(job, store).reference(), looks=1)
    record(job, replace(outcome, steps=2), store, started_at=datetime.now(UTC))
    return outcome


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    """Two trials with adapters that brighten, the second more."""
    folder = tmp_path_factory.mktemp("between")
    pipeline = tiny_pipeline.write(folder / "pipeline")
    store, plan, baseline = created(folder, SPEC.replace("PIPELINE", str(pipeline)))
    for trial, size in zip(plan.trials, (0.15, 0.3), strict=True):
        made = tiny_pipeline.adapter(
            pipeline, folder / trial.trial_id, seed=1, size=size, targets=("conv_out",)
        )
        files = {path.name: path.read_bytes() for path in made.iterdir()}
        finished(store, trial, baseline, files)
    return store


def ask(store: SweepStore, *arguments: str, code: int = 0) -> Any:
    command, *rest = arguments
    done = CliRunner().invoke(app, [command, store.name, *rest, "--storage", store.storage, "--json"])
    assert done.exit_code == code, done.output
    return done.stderr if code else json.loads(done.stdout)


ASKED = ("pick", "--at-least", "brightness=0.5495")


def rows(store: SweepStore) -> list[dict[str, Any]]:
    return [row for row in store.trials().to_pylist() if row["method"] == "interpolated"]


def test_a_point_is_measured_once_and_finished_from_then_on(sweep: SweepStore, tmp_path: Path) -> None:
    mixture = ask(sweep, *ASKED)
    assert "measured" not in mixture
    found = ask(sweep, *ASKED, "--measure")
    assert found["held"]
    assert found["measured"] == found["looked"] == [row["trial_id"] for row in rows(sweep)][:3]
    assert found["rewards_bound"]["brightness"] >= 0.5495 - 1e-7
    assert found["kl"] <= mixture["kl"] * (1 + 1e-6), "the mixture is still there to be picked"
    again = ask(sweep, *ASKED, "--measure")
    assert (again["measured"], again["looked"]) == ([], found["looked"])
    assert {key: again[key] for key in mixture} == {key: found[key] for key in mixture}
    assert {key: ask(sweep, *ASKED)[key] for key in mixture} == {key: found[key] for key in mixture}

    # Its row, files and figures are those of what was measured, and nothing else of the sweep has changed.
    place = found["looked"][-1]
    row = sweep.trial(place)
    assert row is not None
    parts = json.loads(row["interpolated"])
    planned = [trial.trial_id for trial in read_plan(sweep).trials]
    assert set(parts) <= set(planned)
    assert sum(parts.values()) <= 1
    assert row["threshold_brightness"] == pytest.approx(0.5495)
    assert (row["status"], row["feasible"], row["steps"]) == ("succeeded", True, 0)
    assert sweep.evaluations(place).num_rows == 96
    assert place not in planned
    status = CliRunner().invoke(app, ["status", sweep.url(), "--json"])
    assert json.loads(status.stdout)["trials"]["succeeded"] == 2
    certified = json.loads(CliRunner().invoke(app, ["certify", sweep.url(), place, "--json"]).stdout or "{}")
    assert certified.get("kl", row["kl"]) == row["kl"]

    # All that shows trials shows it.
    shown = ask(sweep, "frontier")
    assert {method["method"]: method["trials"] for method in shown["methods"]} == {
        "constrained": 2,
        "interpolated": len(found["looked"]),
    }
    assert sum(shown["statuses"].values()) == 2
    document = report_document(sweep)
    (record_of,) = [record for record in document["trials"] if record["id"] == place]
    assert record_of["label"].startswith("interpolated brightness≥0.5495 of ")
    assert place in document["pick"]["ids"]
    assert place in document["images"]["trials"]
    described = ask(sweep, "describe", place[:6])
    assert described["config"]["interpolated"] == parts
    assert described["trial_id"] == place
    ask(sweep, "export", place, str(tmp_path / "out"))
    card = (tmp_path / "out" / CARD).read_text()
    assert "interpolated by cdsweep, not trained" in card
    assert all(f"{share:g} · {name}" in card for name, share in parts.items())
    assert f"{row['kl']:.3f} nats" in card
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    images = ask(sweep, "sample", place, "--count", "2", "--out", str(tmp_path / "images"))
    assert len(images["images"]) == 2
    again_measured = measured(
        make_job(read_plan(sweep).trials[0], BaselineStatistics.model_validate(sweep.baseline())),
        files,
        reference=None,
        looks=1,
    )
    assert again_measured.kl is not None
    assert again_measured.kl.mean == pytest.approx(row["kl"], rel=1e-4), "what leaves is what was measured"


def test_what_cannot_be_measured_is_one_error(sweep: SweepStore, tmp_path: Path) -> None:
    far = ask(sweep, "pick", "--at-least", "brightness=0.9", "--measure", code=2)
    assert "no finished trial, and no mixture of them, reaches these thresholds" in far
    assert "--measure goes with --at-least" in ask(sweep, "pick", "--kl-at-most", "1", "--measure", code=2)
    assert "unknown reward 'lightness'" in ask(
        sweep, "pick", "--at-least", "lightness=0.5", "--measure", code=2
    )
    store, _, _ = created(tmp_path, MIXTURE)
    said = ask(store, "pick", "--at-least", "x=0.1", "--measure", code=2)
    assert "a weighted sum of two networks is none" in said


def test_it_takes_two_adapters_and_no_driver(sweep: SweepStore, tmp_path: Path) -> None:
    copy = SweepStore(str(tmp_path), "tiny")
    shutil.copytree(sweep.url(), copy.url())
    lease, over = copy.take_lease(lambda _: None), threading.Event()

    def beat() -> None:
        for number in range(1, 10_000):
            copy.write_journal({"state": "running", "lease": lease.number, "beat": number})
            if over.wait(0.1):
                return

    driver = threading.Thread(target=beat)
    driver.start()
    running = CliRunner().invoke(app, ["pick", copy.url(), *ASKED[1:], "--measure"])
    over.set()
    driver.join()
    assert running.exit_code == 2
    assert "is running already" in running.stderr
    alone = SweepStore(str(tmp_path / "other"), "tiny")
    shutil.copytree(sweep.url(), alone.url())
    alone.forget([read_plan(alone).trials[1].trial_id])
    few = CliRunner().invoke(app, ["pick", alone.url(), *ASKED[1:], "--measure"])
    assert few.exit_code == 2
    assert (
        "1 of the constrained and weighted trials of tiny have left an adapter, and it takes 2" in few.stderr
    )


def test_a_trial_measures_as_it_was_evaluated(sweep: SweepStore) -> None:
    """What training evaluates of an adapter, and what is measured of its files, are the same."""
    plan, baseline = read_plan(sweep), BaselineStatistics.model_validate(sweep.baseline())
    job = make_job(plan.trials[0], baseline)
    trained = run_trial(job, LocalTrialIO())
    found = measured(job, trained.adapter, reference=None, looks=1)
    for outcome in (trained, found):
        assert outcome.kl is not None
        assert outcome.evaluation is not None
    assert trained.evaluation is not None
    assert found.evaluation is not None
    np.testing.assert_allclose(found.evaluation.kl, trained.evaluation.kl, rtol=1e-4, atol=1e-6)
    assert found.rewards.keys() == trained.rewards.keys()
    for name, scores in trained.evaluation.rewards.items():
        np.testing.assert_allclose(found.evaluation.rewards[name], scores, atol=1e-5)
    assert found.feasible == trained.feasible
    assert found.violations.keys() == trained.violations.keys()
