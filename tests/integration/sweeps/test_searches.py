"""Searches as users meet them: preview, a certified sweep that is killed and resumed, pick, and what leaves it."""

import json
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from support.models.networks import write_adapter
from support.processes import Sweep, family, kill, wait_for
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.plan import base_config, constrained_trial, make_job, make_plan
from orchestrator.report.status import status_document
from orchestrator.results import layout
from orchestrator.results.schema import trial_table
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.adapters.files import WEIGHTS
from trainers.adapters.reading import read_adapter
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.types import Interval, TrialOutcome

SPEC = """\
name: searched
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
sampling: {steps: 8}
constraints: [{reward: {linear: {direction: [1.0]}}, name: right, at_least: {range: [0.2, 0.9]}, unit: sigma}]
methods: [constrained, {weighted: {search: {sampler: random, trials: 1, low: 0.3, high: 0.6}}}]
search: {kind: certified, tolerance: 0.08, max_trials: 3, rounds: 1}
training: {steps: 60, batch_per_worker: 64, width: 16, checkpoint_every: 10}
convergence: {window: 20}
evaluation: {images: 2048, every: 20}
"""
IMAGES = """\
name: pictures
model: {pretrained: owner/name}
prompts: {train: [a cat], evaluate: [a dog]}
constraints:
  - {reward: saturation, at_least: {grid: [0.5, 1.0]}, unit: sigma}
  - {reward: brightness, at_least: 0.1, unit: sigma}
training: {steps: 20}
evaluation: {images: 64}
"""

with_ray = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def marked(test: Any) -> Any:
    for mark in with_ray:
        test = mark(test)
    return test


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def searched(sweep: Sweep) -> Sweep:
    """A certified sweep of an exact mixture, whose trials take a second."""
    sweep.write(SPEC)
    sweep.name = "searched"
    return sweep


# Preview -------------------------------------------------------------------------------------------------


def test_preview_needs_neither_training_nor_ray(searched: Sweep, runner: CliRunner) -> None:
    result = runner.invoke(app, ["preview", str(searched.spec), "--samples", "3000", "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["samples"] == 3000
    assert sorted(point["thresholds"]["right"] for point in document["points"]) == pytest.approx(
        [0.2, 0.55, 0.9]
    )
    for point in document["points"]:
        bound = point["thresholds"]["right"]
        assert point["verdict"] == "reachable"
        assert point["kl"] == pytest.approx(0.5 * bound**2, rel=0.1)
        assert point["multipliers"]["right"] == pytest.approx(bound, rel=0.1)
    table = runner.invoke(app, ["preview", str(searched.spec), "--samples", "300"])
    assert table.exit_code == 0, table.stderr
    assert "300 samples" in table.stdout
    assert "Ray" not in table.stderr
    assert not searched.storage.exists(), "nothing is started"


def test_previews_without_a_subject_are_one_message(searched: Sweep, runner: CliRunner) -> None:
    text = SPEC.replace("[constrained, {weighted", "[{weighted").replace("{range: [0.2, 0.9]}", "0.2")
    searched.write(text.replace("search: {kind: certified, tolerance: 0.08, max_trials: 3, rounds: 1}\n", ""))
    result = runner.invoke(app, ["preview", str(searched.spec)])
    assert result.exit_code == 2
    assert "nothing to preview" in result.stderr


# A certified sweep -----------------------------------------------------------------------------------------


def rows_of(sweep: Sweep) -> dict[str, dict[str, Any]]:
    paths = (sweep.directory / "trials").glob("*.parquet")
    return {path.stem: pq.read_table(path).to_pylist()[0] for path in paths}


def check_finished(sweep: Sweep) -> None:
    """Every planned trial has its row, the bounds are there, the study knows its trial, and the state is finished."""
    plan = json.loads((sweep.directory / "plan.json").read_text())
    ids = [trial["trial_id"] for trial in plan["trials"]]
    rows = rows_of(sweep)
    assert len(ids) == len(set(ids))
    assert set(ids) == set(rows)
    assert {row["status"] for row in rows.values()} == {"succeeded"}
    methods = [trial["method"] for trial in plan["trials"]]
    assert methods.count("weighted") == 1
    assert 1 <= methods.count("constrained") <= 3
    (weighted,) = [trial for trial in plan["trials"] if trial["method"] == "weighted"]
    assert weighted["origin"] == "random 0.3 to 0.6, seed 0"
    bounds = pq.read_table(sweep.directory / "bounds.parquet").to_pylist()
    assert bounds[-1]["trials"] == len(bounds) == len(ids)
    assert bounds[-1]["kind"] == "estimated"
    assert 0 <= bounds[-1]["gap"] < 0.2
    storage = JournalStorage(JournalFileBackend(str(sweep.directory / layout.STUDIES)))
    (name,) = optuna.get_all_study_names(storage)
    (told,) = optuna.load_study(study_name=name, storage=storage).get_trials()
    assert told.state == optuna.trial.TrialState.COMPLETE
    assert told.user_attrs["trial_id"] == weighted["trial_id"]
    status = json.loads(sweep.ask("status", sweep.name, "--json").stdout)
    assert status["state"] == "finished"
    assert status["trials"]["planned"] == status["trials"]["succeeded"] == len(ids)


@marked
@pytest.mark.usefixtures("shared")
def test_a_certified_sweep_from_preview_to_pick(searched: Sweep) -> None:
    first = searched.run("run", "spec.yaml", "--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert {method["method"] for method in document["methods"]} == {"constrained", "weighted"}
    assert "predicted from 20000 samples" in first.stderr
    assert "estimated gap" in first.stderr
    assert (searched.directory / "preview.json").is_file()
    check_finished(searched)
    assert json.loads(searched.ask("frontier", "searched", "--json").stdout) == document

    rows = rows_of(searched)
    asked = 0.6 * max(row["threshold_right"] for row in rows.values() if row["method"] == "constrained")
    picked = json.loads(searched.ask("pick", "searched", "--at-least", f"right={asked}", "--json").stdout)
    assert picked["rewards"]["right"] >= asked - 1e-4
    assert {member["trial_id"] for member in picked["mixture"]} <= {*rows, "pretrained"}
    assert sum(member["probability"] for member in picked["mixture"]) == pytest.approx(1.0)
    # Each trial errs by its noise and its training, the mixture by the curvature of b² / 2.
    assert 0.5 * asked**2 - 0.06 <= picked["kl"] <= 0.5 * asked**2 + 0.2
    assert picked["lower_bound"] <= picked["kl"] + 1e-9
    single = json.loads(
        searched.ask("pick", "searched", "--kl-at-most", str(picked["kl"]), "--single", "--json").stdout
    )
    assert len(single["mixture"]) == 1
    for arguments, said in (
        (["--at-least", "wrong=1"], "unknown reward 'wrong'"),
        (["--at-least", "right"], "--at-least takes REWARD=VALUE"),
        (["--at-least", "right=0.1", "--at-least", "right=0.2"], "--at-least names the reward 'right' twice"),
        (["--at-least", "right=9"], "no finished trial, and no mixture of them, reaches"),
        ([], "say what is wanted"),
    ):
        refused = searched.ask("pick", "searched", *arguments)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr
    exported = searched.ask("export", "searched", "pick", "out", "--at-least", f"right={asked}")
    assert exported.returncode == 2
    assert "its model is a mixture" in exported.stderr

    before = {path: path.stat().st_mtime_ns for path in (searched.directory / "trials").iterdir()}
    for command in (["resume", "searched"], ["run", "spec.yaml"]):
        again = searched.ask(*command, "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout) == document
        assert "Ray:" not in again.stderr, "nothing is left to run"
    assert {path: path.stat().st_mtime_ns for path in (searched.directory / "trials").iterdir()} == before
    # A driver that died after the last trial, before it could say so.
    journal = searched.directory / "journal.json"
    said = json.loads(journal.read_text())
    boot, space, _, started = said["process"].split()
    gone = f"{boot} {space} {2**22 - 3} {started}"
    journal.write_text(json.dumps(said | {"state": "running", "process": gone}))
    lease = max((searched.directory / "lease").iterdir())
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"process": gone}))
    assert json.loads(searched.ask("status", "searched", "--json").stdout)["state"] == "interrupted"
    assert searched.ask("resume", "searched").returncode == 0
    check_finished(searched)


@pytest.mark.exhaustive
def test_a_trial_that_ended_short_of_its_optimum_is_trained_further(searched: Sweep) -> None:
    searched.write(
        SPEC.replace("steps: 60", "steps: 10")
        .replace("tolerance: 0.08, max_trials: 3, rounds: 1", "tolerance: 0.01, max_trials: 4, rounds: 3")
        .replace("convergence: {window: 20}", "convergence: {tolerance: 1.0e-9}")
        .replace("methods: [", "methods: [{frontier: {rounds: 2, points: 2}}, ")
        + "resources: {concurrent_trials: 1}\n"
    )
    run = searched.run("run", "spec.yaml", "--no-preview")
    assert run.returncode == 0, run.stderr
    rows = pq.read_table(searched.directory / "trials").to_pylist()
    (box,) = [row for row in rows if row["method"] == "frontier"]
    assert box["rounds"] == 2
    assert f"{box['trial_id']} is trained further, round 2" in run.stderr
    rows = [row for row in rows if row["method"] == "constrained"]
    assert sum(row["rounds"] for row in rows) == 4, "every round counts as a trial"
    further = [row for row in rows if row["rounds"] > 1]
    assert further, "a trial elsewhere would not help as much"
    for row in further:
        assert f"{row['trial_id']} is trained further, round 2" in run.stderr
        history = pq.read_table(searched.directory / "history" / f"{row['trial_id']}.parquet")
        steps = history["step"].to_pylist()
        assert steps == sorted(set(steps))
        if "not kept" not in row["notes"]:
            assert row["steps"] == 10 * row["rounds"] == steps[-1]
            assert f"trained further from step {10 * (row['rounds'] - 1)}, where its KL was" in row["notes"]
        assert "interruption" not in row["notes"]
    assert not list(searched.directory.glob("checkpoints/*/*")), "nothing goes on from them any more"
    bounds = pq.read_table(searched.directory / "bounds.parquet")
    assert bounds["trials"].to_pylist()[-1] >= 4
    status = json.loads(searched.ask("status", "searched", "--json").stdout)
    assert status["state"] == "finished"


@pytest.fixture
def slow(searched: Sweep) -> Sweep:
    """One trial at a time, each long enough to strike between two checkpoints; the second has weights."""
    searched.write(
        SPEC.replace("steps: 60", "steps: 400")
        .replace("convergence: {window: 20}", "convergence: {tolerance: 1.0e-9}")
        .replace("max_trials: 3", "max_trials: 2")
        + "resources: {concurrent_trials: 1}\n"
    )
    return searched


def wait_for_the_second_trial(sweep: Sweep) -> None:
    def struck() -> bool:
        return bool(sweep.finished()) and bool(sweep.checkpointed() - sweep.finished())

    wait_for(struck, 240, "one trial finished, one interrupted")


@pytest.mark.exhaustive
@marked
def test_a_trial_interrupted_by_ctrl_c_is_no_failure_for_its_search(slow: Sweep) -> None:
    process = slow.start("run", "spec.yaml", "--address", "local", "--no-preview")
    wait_for_the_second_trial(slow)
    interrupted = slow.checkpointed() - slow.finished()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(slow.ask("status", "searched", "--json").stdout)["state"] == "stopped"
    assert not interrupted & slow.finished()
    resumed = slow.run("resume", "searched", "--address", "local")
    assert resumed.returncode == 0, resumed.stderr
    assert interrupted <= slow.finished()
    check_finished(slow)


@pytest.mark.exhaustive
@marked
def test_a_certified_sweep_survives_a_killed_driver(slow: Sweep) -> None:
    searched = slow
    process = searched.start("run", "spec.yaml", "--address", "local", "--no-preview")
    wait_for_the_second_trial(searched)
    searched.orphans = family(process.pid)
    kill(process.pid)
    process.wait(30)
    wait_for(lambda: not searched.orphaned_trials(), 30, "no trial runs on without its driver")
    assert not (searched.directory / "preview.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (searched.directory / "trials").iterdir()}
    planned = [t["trial_id"] for t in json.loads((searched.directory / "plan.json").read_text())["trials"]]
    interrupted = searched.checkpointed() - searched.finished()
    assert interrupted <= set(planned), "the plan knows every trial that has left anything"
    assert json.loads(searched.ask("status", "searched", "--json").stdout)["state"] == "interrupted"

    resumed = searched.run("resume", "searched", "--address", "local")
    assert resumed.returncode == 0, resumed.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (searched.directory / "trials").iterdir()}
    assert {name: after[name] for name in before} == before, "finished trials are not run again"
    for trial_id in interrupted:
        last = [line for line in resumed.stderr.splitlines() if trial_id in line][-1]
        assert "continued from step" in last
    final = [t["trial_id"] for t in json.loads((searched.directory / "plan.json").read_text())["trials"]]
    assert final[: len(planned)] == planned
    check_finished(searched)


# States ----------------------------------------------------------------------------------------------------


def test_a_searched_sweep_is_finished_when_its_driver_says_so(searched: Sweep, tmp_path: Path) -> None:
    spec = parse_spec(SPEC)
    store = SweepStore(str(tmp_path / "states"), spec.name)
    store.create(dump_spec(spec), make_plan(spec).to_json(), None)
    assert status_document(store)["state"] == "planned"
    known = {
        "lease": 1,
        "beat": 1,
        "process": None,
        "planned": 0,
        "trials": {},
        "feasible": 0,
        "failures": [],
        "running": [],
    }
    for said, shown in (
        ("running", "running"),
        ("interrupted", "interrupted"),
        ("stopped", "stopped"),
        ("ended", "finished"),
    ):
        store.write_journal(known | {"state": said})
        assert status_document(store)["state"] == shown


# What leaves a sweep ---------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> SweepStore:
    """A sweep of a pipeline with two finished trials and their adapters, as if it had been run."""
    spec = parse_spec(IMAGES)
    plan = make_plan(spec)
    baseline = BaselineStatistics(
        rewards={
            "saturation": RewardStatistics(mean=0.4, std=0.1),
            "brightness": RewardStatistics(mean=0.5, std=0.2),
        },
        samples=None,
    )
    store = SweepStore(str(tmp_path / "results"), spec.name)
    store.create(dump_spec(spec), plan.to_json(baseline=baseline), baseline.model_dump(mode="json"))
    now = datetime(2025, 1, 1, tzinfo=UTC)
    for trial, sigmas in zip(plan.trials, (0.5, 1.0), strict=True):
        rewards = {"saturation": 0.4 + 0.1 * sigmas, "brightness": 0.52}
        outcome = TrialOutcome(
            status="succeeded",
            error=None,
            feasible=True,
            kl=Interval(mean=0.5 * sigmas**2, low=0.4 * sigmas**2, high=0.6 * sigmas**2),
            kl_estimator="path",
            rewards={name: Interval(mean=value, low=value, high=value) for name, value in rewards.items()},
            violations={"saturation": 0.0, "brightness": 0.0},
            multipliers={"saturation": 10 * sigmas, "brightness": 0.0},
            weights={},
            steps=20,
            wall_seconds=1.0,
            evaluation=None,
            history=(),
        )
        made = write_adapter(tmp_path / trial.trial_id, rank=int(2 * sigmas))
        files = {WEIGHTS: (made / WEIGHTS).read_bytes(), "README.md": b"card"}
        folder = store.write_adapter(trial.trial_id, files)
        job = make_job(trial, baseline)
        store.write_trial(trial_table(job, outcome, started_at=now, finished_at=now, adapter=folder))
    return store


def test_a_mixture_is_exported_as_adapters_and_an_index(
    pictures: SweepStore, runner: CliRunner, tmp_path: Path
) -> None:
    ids = [trial["trial_id"] for trial in pictures.plan()["trials"]]
    out = tmp_path / "out"
    arguments = ["export", pictures.url(), "pick", str(out), "--at-least", "saturation=0.475"]
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["trial_id"] == "pick"
    assert {str(path) for path in out.rglob("*") if path.is_file()} == set(json.loads(result.stdout)["files"])
    index = json.loads((out / "mixture.json").read_text())
    shares = {member["trial_id"]: member["probability"] for member in index["members"]}
    assert shares == pytest.approx(dict.fromkeys(ids, 0.5), abs=1e-4)
    for member in index["members"]:
        stored = pictures.adapter(member["trial_id"])
        found = {path.name: path.read_bytes() for path in (out / member["adapter"]).iterdir()}
        assert found == stored
    assert index["rewards"]["saturation"] == pytest.approx(0.475, abs=1e-5)
    assert index["kl"] == pytest.approx(0.5 * (0.125 + 0.5), abs=1e-4)
    assert index["thresholds"] == {"saturation": 0.475}
    text = (out / "README.md").read_text()
    assert all(name in text for name in ids)
    assert runner.invoke(app, arguments).exit_code == 0, "the same again changes nothing"
    other = runner.invoke(app, [*arguments[:-1], "saturation=0.5"])
    assert other.exit_code == 2
    assert "is not empty" in other.stderr


def test_an_adapter_leaves_with_the_names_of_kohya(
    pictures: SweepStore, runner: CliRunner, tmp_path: Path
) -> None:
    [trial_id, _] = [trial["trial_id"] for trial in pictures.plan()["trials"]]
    wanted = ["--at-least", "saturation=0.475"]
    for trial, folder, more in ((trial_id, tmp_path / "one", []), ("pick", tmp_path / "many", wanted)):
        result = runner.invoke(
            app, ["export", pictures.url(), trial, str(folder), *more, "--format", "kohya"]
        )
        assert result.exit_code == 0, result.stderr
    (weights,) = (tmp_path / "one").glob("*.safetensors")
    assert (tmp_path / "many" / trial_id / weights.name).read_bytes() == weights.read_bytes()
    assert all(update.kohya and update.strength == 1.0 for update in read_adapter(tmp_path / "one"))
    assert "names of kohya" in (tmp_path / "many" / "README.md").read_text()
    wrong = runner.invoke(app, ["export", pictures.url(), trial_id, str(tmp_path / "x"), "--format", "comfy"])
    assert wrong.exit_code == 2
    assert "'diffusers', 'kohya'" in wrong.stderr


def test_the_pretrained_model_is_exported_as_a_member_without_an_adapter(
    pictures: SweepStore, runner: CliRunner, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = runner.invoke(
        app, ["export", pictures.url(), "pick", str(out), "--at-least", "saturation=0.425"]
    )
    assert result.exit_code == 0, result.stderr
    members = json.loads((out / "mixture.json").read_text())["members"]
    (pretrained,) = [member for member in members if member["trial_id"] == "pretrained"]
    assert pretrained["adapter"] is None
    assert pretrained["probability"] == pytest.approx(0.5, abs=1e-4)
    assert len(list(out.iterdir())) == 3


def test_what_a_pick_cannot_do_is_said(
    pictures: SweepStore, runner: CliRunner, searched: Sweep, tmp_path: Path
) -> None:
    for command in (
        ["export", pictures.url(), "pick", str(tmp_path / "out")],
        ["sample", pictures.url(), "pick"],
    ):
        result = runner.invoke(app, command)
        assert result.exit_code == 2
        assert "say what is wanted" in result.stderr
        bad = runner.invoke(app, [*command, "--at-least", "saturation=nan"])
        assert bad.exit_code == 2
        assert "finite" in bad.stderr

    spec = parse_spec(SPEC)
    problem = ExactProblem(base_config(spec).model.exact, base_config(spec).rewards)
    store = SweepStore(str(tmp_path / "exact"), spec.name)
    trial = constrained_trial(base_config(spec), {"right": 0.5}, 0)
    plan = make_plan(spec).with_trial(trial)
    store.create(dump_spec(spec), plan.to_json(), problem.baseline().model_dump(mode="json"))
    nothing = runner.invoke(app, ["pick", store.url(), "--at-least", "right=0.1"])
    assert nothing.exit_code == 2
    assert "has finished yet" in nothing.stderr
    now = datetime(2025, 1, 1, tzinfo=UTC)
    exact = Interval(mean=0.125, low=0.125, high=0.125)
    outcome = TrialOutcome(
        status="succeeded",
        error=None,
        feasible=True,
        kl=exact,
        kl_estimator="path",
        rewards={"right": Interval(mean=0.5, low=0.5, high=0.5)},
        violations={"right": 0.0},
        multipliers={"right": 0.5},
        weights={},
        steps=1,
        wall_seconds=1.0,
        evaluation=None,
        history=(),
    )
    job = make_job(trial, problem.baseline())
    store.write_trial(trial_table(job, outcome, started_at=now, finished_at=now))
    still = runner.invoke(
        app, ["export", store.url(), trial.trial_id, str(tmp_path / "x"), "--at-least", "right=0.1"]
    )
    assert still.exit_code == 2
    assert "stand still" in still.stderr

    # It is met by the pretrained model alone, of which an exact mixture has points.
    free = runner.invoke(app, ["sample", store.url(), "pick", "--at-least", "right=-1", "--json"])
    assert free.exit_code == 0, free.stderr
    points = pq.read_table(json.loads(free.stdout)["file"])
    assert set(points["member"].to_pylist()) == {"pretrained"}
    assert points["x_0"].to_pylist() == points["pretrained_x_0"].to_pylist()
    assert points["kl"].to_pylist() == [0.0] * 8
