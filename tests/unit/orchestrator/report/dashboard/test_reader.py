"""The process that reads sweeps for the page: what it lists, what it answers again, and what it survives."""

import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.trials.trial import failed, record
from orchestrator.frontier.problems.chosen import exact_baseline
from orchestrator.plan import base_config, make_job, make_plan
from orchestrator.report.dashboard import reader
from orchestrator.report.dashboard.assets import POLICY, assets
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec

SHIPPED = Path(__file__).parents[5].joinpath("sweeps/mixture_grid.yaml").read_text(encoding="utf-8")


def made(folder: Path, name: str) -> SweepStore:
    """A sweep whose first trial has failed."""
    spec = parse_spec(SHIPPED, overrides=[f"name={name}"])
    plan, baseline = make_plan(spec), exact_baseline(base_config(spec))
    assert baseline is not None
    store = SweepStore(str(folder), name)
    store.create(dump_spec(spec), plan.to_json(baseline=baseline), baseline.model_dump(mode="json"))
    ended(store, 0)
    return store


def ended(store: SweepStore, number: int) -> None:
    spec = parse_spec(SHIPPED)
    baseline = exact_baseline(base_config(spec))
    assert baseline is not None
    job = make_job(make_plan(spec).trials[number], baseline)
    record(job, failed("of no use"), store, started_at=datetime.now(UTC))


def named(store: SweepStore) -> dict[str, str]:
    return {"name": store.name, "storage": store.storage}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is answered again."""
    monkeypatch.setattr(reader, "_FRESH_SECONDS", -1e9)
    monkeypatch.setattr(reader, "_LISTING_SECONDS", -1e9)
    monkeypatch.setattr(reader, "_REST", -1.0)


def test_announced_sweeps_and_those_of_storages_are_listed_once(tmp_path: Path) -> None:
    here, there = made(tmp_path / "a", "here"), made(tmp_path / "b", "there")
    gone = {"name": "gone", "storage": str(tmp_path / "a")}
    question = {
        "ask": "list",
        "sweeps": [named(here), gone],
        "storages": [str(tmp_path / "b"), str(tmp_path / "a")],
    }
    answer, body = reader.Reader().answer(question)
    assert body == b""
    listed = {sweep["name"]: sweep for sweep in answer["sweeps"]}
    assert len(answer["sweeps"]) == len(listed) == 3
    assert listed["gone"]["state"] == "unreadable"
    assert listed["there"]["trials"] == {"planned": len(make_plan(parse_spec(SHIPPED)).trials), "ended": 1}
    assert listed["there"]["id"] == reader.sweep_id(named(there))
    assert answer["problems"] == []


def test_a_storage_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    question = {"ask": "list", "sweeps": [], "storages": ["nosuch://bucket"]}
    answer, _ = reader.Reader().answer(question)
    assert answer["sweeps"] == []
    assert "nosuch" in answer["problems"][0]


def test_a_document_is_sent_again_only_when_it_has_changed(tmp_path: Path) -> None:
    store, reading = made(tmp_path, "demo"), reader.Reader()
    question: dict[str, Any] = {"ask": "document", "sweep": named(store), "known": ""}
    first, body = reading.answer(question)
    assert len(json.loads(body)["trials"]) == 1
    again, nothing = reading.answer({**question, "known": first["tag"]})
    assert (again["tag"], nothing) == (first["tag"], b"")
    ended(store, 1)
    after, body = reading.answer({**question, "known": first["tag"]})
    assert after["tag"] != first["tag"]
    assert len(json.loads(body)["trials"]) == 2


def test_a_question_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    store = made(tmp_path, "demo")
    questions: list[Any] = [
        {"ask": "document", "sweep": {"name": "../etc", "storage": str(tmp_path)}, "known": ""},
        {"ask": "passwords"},
        {"ask": "document", "sweep": named(store), "known": ""},
    ]
    text = b"not json\n" + b"".join(json.dumps(question).encode() + b"\n" for question in questions)
    answers = io.BytesIO()
    reader.serve(io.BytesIO(text), answers)
    answers.seek(0)
    for message in ("Expecting value", "the name of a sweep must be", "no such question"):
        reply = json.loads(answers.readline())
        assert message in reply["error"]
        assert reply["bytes"] == 0
    reply = json.loads(answers.readline())
    assert len(answers.read()) == reply["bytes"] > 0


def test_the_process_keeps_what_is_printed_out_of_its_answers(tmp_path: Path) -> None:
    question = {"ask": "list", "sweeps": [], "storages": [str(tmp_path)]}
    loud = (
        "import runpy; from orchestrator.results import catalog; "
        "catalog.list_sweeps = lambda storage: print('a library prints') or []; "
        "runpy.run_module('orchestrator.report.dashboard.reader', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", loud],
        input=json.dumps(question).encode() + b"\n",
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout)["answer"] == {"sweeps": [], "problems": []}
    assert b"a library prints" in done.stderr


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = assets()["/cdsweep"].body
    for path in ("/cdsweep/page.css", "/cdsweep/page.js", "/cdsweep/report.css", "/cdsweep/report.js"):
        assert f'"{path}"' in page
        assert assets()[path].body
    assert "http" not in page
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
