"""Watching a sweep that runs elsewhere."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands import watch
from orchestrator.commands.watch import watch_sweep
from orchestrator.errors import UsageError
from orchestrator.results.leases import _process
from orchestrator.results.store import SweepStore


def journal(state: str, step: int) -> dict[str, Any]:
    return {
        "lease": 1,
        "beat": step,
        "owner": "me@here (process 1)",
        "since": "2026-01-01T00:00:00+00:00",
        "process": _process(os.getpid()),
        "updated_at": datetime.now(UTC).isoformat(),
        "state": state,
        "planned": 1,
        "trials": {},
        "feasible": 0,
        "failures": [],
        "running": [
            {"trial_id": "aa11", "state": "running", "label": "constrained", "step": step, "kl": 0.5}
        ],
        "closing": [f"0 of 1 trials done at step {step}"],
    }


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepStore:
    monkeypatch.setattr(watch, "HEARTBEAT_SECONDS", 0.02)
    made = SweepStore(str(tmp_path), "demo")
    made.create("name: demo\n", {"version": 1, "name": "demo", "trials": [{"trial_id": "aa11"}]}, None)
    made.write_journal(journal("running", 1))
    return made


def test_it_follows_until_the_sweep_runs_no_more(
    store: SweepStore, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = threading.Event()

    def drive() -> None:
        seen.wait(30)
        store.write_journal(journal("running", 2))
        threading.Event().wait(0.3)
        store.write_journal(journal("stopped", 2))

    driver = threading.Thread(target=drive)
    driver.start()
    seen.set()
    watch_sweep(store, "state")
    driver.join()
    told = capsys.readouterr().out
    assert "at step 2" in told
    assert "demo: stopped" in told
    assert told.count("at step 2") == 1, "a line is told when something has changed"


def test_an_unknown_order_names_the_known_ones(store: SweepStore) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'state'.*state, kl, violation, left, trial"):
        watch_sweep(store, "stat")
