"""The report's document says what the files say, names what it could not read, and picks by the rule of `pick`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from support.reported import PROMPTS, SPEC, noise_pictures, write_sweep

from orchestrator.errors import SpecError
from orchestrator.frontier.feasibility import standard_error
from orchestrator.plan import make_plan
from orchestrator.report.page import pickable as rule
from orchestrator.report.page.curves import training_curves
from orchestrator.report.page.document import report_document
from orchestrator.report.picked import PRETRAINED, picked
from orchestrator.report.sweep import pretrained_rewards, read_baseline, read_plan, read_trials
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    """A finished sweep of 18 trials, two of which failed."""
    return write_sweep(
        tmp_path_factory.mktemp("sweeps"), failed=2, prompts=True, pictures=noise_pictures(4, 16)
    )


@pytest.fixture(scope="module")
def document(store: SweepStore) -> dict[str, Any]:
    return report_document(store)


def test_the_floor_of_the_kl_stands_beside_how_it_was_made(
    store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = read_baseline(store)
    assert report_document(store, images=False)["kl_floor"] is None  # of a mixture
    measured = known.model_copy(update={"kl_floor": 7e-9})
    monkeypatch.setattr("orchestrator.report.page.document.read_baseline", lambda _: measured)
    assert report_document(store, images=False)["kl_floor"] == measured.kl_floor


def test_trials_say_what_the_files_say(store: SweepStore, document: dict[str, Any]) -> None:
    json.dumps(document, allow_nan=False)
    rows = {row["trial_id"]: row for row in store.trials().to_pylist()}
    assert {trial["id"] for trial in document["trials"]} == rows.keys()
    for trial in document["trials"]:
        row = rows[trial["id"]]
        assert trial["method"] == row["method"]
        assert trial["label"].startswith(row["method"])
        if row["status"] == "failed":
            assert trial["error"] == row["error"]
            assert "kl" not in trial
            continue
        assert trial["kl"] == pytest.approx([row["kl"], row["kl_low"], row["kl_high"]], rel=1e-5)
        assert trial["rewards"]["near"][0] == pytest.approx(row["reward_near"], rel=1e-5)
        assert trial["violations"]["right"] == pytest.approx(row["violation_right"], rel=1e-4)
        priced = "multipliers" if row["method"] == "constrained" else "weights"
        assert set(trial[priced]) == {"right", "near"}
        curve = document["curves"][trial["id"]]
        assert curve["step"][0] == 10
        assert curve["step"][-1] == row["steps"]
        if row["method"] == "constrained":
            assert curve["multiplier"]["right"][-1] == pytest.approx(row["multiplier_right"], rel=0.01)
    assert any(trial["front"] for trial in document["trials"])
    assert document["status"]["trials"] == {
        "planned": 18, "running": 0, "succeeded": 16, "failed": 2, "infeasible": 0, "stopped": 0
    }  # fmt: skip
    assert document["seeds"] == [0, 1]
    assert document["spec"] == store.spec_yaml()
    assert document["problems"] == []
    assert document["versions"]["cdsweep"]


def test_words_say_what_constraints_bought_and_which_trial_to_take(document: dict[str, Any]) -> None:
    words = document["words"]
    assert "met all 6 threshold combinations" in words["bought"]
    taken = next(trial for trial in document["trials"] if trial["id"] == words["taken"])
    assert taken["feasible"]
    assert f"take trial {taken['id']}" in words["take"]
    demanding = max(trial["thresholds"]["right"] for trial in document["trials"] if trial.get("feasible"))
    assert taken["thresholds"]["right"] == demanding
    assert words["thresholds"]["right"] <= taken["thresholds"]["right"] < words["thresholds"]["right"] + 0.01
    mean, low, high = taken["rewards"]["right"]
    holds = min(
        taken["thresholds"]["right"], mean - 1.96 * standard_error(low, high)
    )  # of two at 95 % together
    assert holds - 0.003 <= words["holds"]["right"] <= holds + 1e-4
    told = " ".join(words["uncertain"])
    assert "2 trials failed" in told
    assert "two seeds" in told


def test_pictures_are_inside_and_prompts_are_named(document: dict[str, Any]) -> None:
    pictures = document["images"]
    assert pictures["pretrained"]["source"].startswith("data:image/webp;base64,")
    assert len(pictures["trials"]) == 16
    assert pictures["columns"] == 4
    assert pictures["prompts"] == list(PROMPTS)
    picture = next(iter(pictures["trials"].values()))
    assert (picture["width"], picture["height"]) == (64, 16), (
        "the trial's own row, without the pretrained one"
    )
    changes = document["prompts"]["changes"][next(iter(pictures["trials"]))]["right"]
    assert document["prompts"]["prompts"] == list(PROMPTS)
    means = [interval[0] for interval in changes]
    assert means == sorted(means)
    assert all(low < mean < high for mean, low, high in changes)


def test_without_pictures_none_are_asked_for(store: SweepStore) -> None:
    found = report_document(store, images=False)
    assert found["images"] is None


def test_lines_lie_where_they_must(document: dict[str, Any]) -> None:
    exact = [line for line in document["exact"] if line["reward"] == "right"]
    assert {tuple(line["held"]) for line in exact} == {("near",)}
    for line in exact:
        kl = [point[1] for point in line["points"]]
        assert kl == sorted(kl)
    attained = {(line["method"], line["level"]) for line in document["attained"]}
    assert attained == {(method, level) for method in ("constrained", "weighted") for level in (1, 2)}


def test_nothing_has_run(tmp_path: Path) -> None:
    spec = parse_spec(SPEC).model_copy(update={"storage": str(tmp_path)})
    store = SweepStore(str(tmp_path), "demo")
    store.create(dump_spec(spec), make_plan(spec).to_json(), None)
    found = report_document(store)
    assert found["words"]["bought"] == "No trial has finished yet."
    assert "still to be sampled" in found["words"]["uncertain"][0]
    assert found["trials"] == []
    assert found["pick"] is None
    assert found["status"]["state"] == "planned"
    json.dumps(found, allow_nan=False)


def test_no_trial_has_finished(tmp_path: Path) -> None:
    found = report_document(write_sweep(tmp_path, finished=0))
    assert found["words"]["bought"] == "No trial has finished yet."
    assert found["words"]["taken"] is None
    assert found["pick"]["ids"] == [PRETRAINED]
    assert found["images"] is None
    assert found["prompts"] is None


def test_a_corrupted_file_is_named_and_skipped(tmp_path: Path) -> None:
    store = write_sweep(tmp_path, finished=6)
    files = sorted((tmp_path / "demo" / "trials").glob("*.parquet"))
    files[2].write_bytes(files[2].read_bytes()[:200])
    history = min((tmp_path / "demo" / "history").glob("*.parquet"))
    history.write_bytes(b"not Parquet")
    (tmp_path / "demo" / "preview.json").write_text("{")
    found = report_document(store)
    assert len(found["trials"]) == 5
    told = "\n".join(found["problems"])
    for path in (files[2], history, tmp_path / "demo" / "preview.json"):
        assert str(path) in told
    assert told.count("damaged, skipped") == 2


@pytest.mark.parametrize("some", [True, False])
def test_an_older_schema_is_named_and_skipped(tmp_path: Path, some: bool) -> None:
    store = write_sweep(tmp_path, finished=4)
    files = sorted((tmp_path / "demo" / "trials").glob("*.parquet"))
    for file in files[:1] if some else files:
        table = pq.read_table(file)
        metadata = {**table.schema.metadata, b"cdsweep.schema_version": b"0"}
        pq.write_table(table.replace_schema_metadata(metadata), file)
    found = report_document(store)
    assert len(found["trials"]) == (3 if some else 0)
    assert len(found["problems"]) == (1 if some else 4)
    assert f"{files[0]}: version 0 of the results' schema, not 1: skipped" in found["problems"]


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    store = write_sweep(tmp_path, finished=3, pictures=noise_pictures(2, 16))
    damaged = min((tmp_path / "demo" / "images").glob("[0-9a-f]*.png"))
    damaged.write_bytes(damaged.read_bytes()[:60])
    found = report_document(store)
    assert len(found["images"]["trials"]) == 2
    assert str(damaged) in found["problems"][0]


def test_a_damaged_plan_is_one_clear_error(tmp_path: Path) -> None:
    store = write_sweep(tmp_path, finished=1)
    (tmp_path / "demo" / "plan.json").write_text('{"format": 99, "trials": []}')
    with pytest.raises(SpecError, match="the plan has format 99, but this version reads format 2"):
        report_document(store)


def test_candidates_are_those_of_pick_to_the_last_digit(store: SweepStore, document: dict[str, Any]) -> None:
    source = document["pick"]
    rows = {row["trial_id"]: row for row in store.trials().to_pylist()}
    assert source["ids"][0] == PRETRAINED
    assert source["rewards"] == ["right", "near"]
    for place, name in enumerate(source["ids"][1:], start=1):
        assert source["kl"][place] == rows[name]["kl"]
        assert source["rewards_measured"][place] == [rows[name]["reward_right"], rows[name]["reward_near"]]
    reaches = np.array(source["reaches"])
    assert source["units"] == np.ptp(reaches, axis=0).tolist()


def test_of_very_many_candidates_only_dominated_ones_are_left_out(
    store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, baseline = read_trials(store, read_plan(store)), read_baseline(store)
    pretrained = pretrained_rewards(store, baseline)
    every = rule.pickable(trials, baseline, pretrained)
    monkeypatch.setattr(rule, "_PRUNED", 4)
    few = rule.pickable(trials, baseline, pretrained)
    assert few["units"] == every["units"]
    assert len(few["ids"]) < len(every["ids"])
    for asked in ({"right": 0.6}, {"right": 0.5, "near": -1.3}, {"near": -1.0}):
        for mix in (True, False):
            found = picked(trials, baseline, pretrained, at_least=asked, mix=mix).to_json()
            assert {member["trial_id"] for member in found["mixture"]} <= set(few["ids"])


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    steps = np.arange(1, 5001)
    table = pa.table({"trial_id": ["a"] * 5000, "step": steps, "kl": steps / 10, "multiplier_x": steps * 1.0})
    curve = training_curves(table)["a"]
    assert len(curve["step"]) <= 160
    assert curve["step"][0] == 1
    assert curve["step"][-1] == 5000
    assert curve["multiplier"]["x"][-1] == 5000.0
    assert "violation" not in curve


def test_intervals_of_prompts_come_from_their_samples(store: SweepStore, document: dict[str, Any]) -> None:
    trial_id, changes = next(iter(document["prompts"]["changes"].items()))
    rows = store.evaluations(trial_id).to_pylist()
    mine = [row["reward_near"] - row["reference_near"] for row in rows if row["prompt"] == PROMPTS[1]]
    mean, low, high = changes["near"][1]
    assert mean == pytest.approx(np.mean(mine), rel=1e-3)
    expected = stats.ttest_1samp(mine, 0.0).confidence_interval(0.95)
    assert [low, high] == pytest.approx(list(expected), abs=2e-4)
