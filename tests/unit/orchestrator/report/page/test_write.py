"""The report of a running sweep appears by itself, never more often than asked, and never in the sweep's way."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.reported import write_sweep

from orchestrator.errors import StorageError
from orchestrator.report.page import write
from orchestrator.report.page.write import LiveReport, write_figures, write_report
from orchestrator.results.store import SweepStore


def until(happened: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_a_report_is_one_file_in_the_sweep(tmp_path: Path) -> None:
    store = write_sweep(tmp_path, finished=3)
    written = write_report(store)
    assert written.path == str(tmp_path / "demo" / "report.html")
    assert Path(written.path).stat().st_size == written.size
    assert len(written.document["trials"]) == 3


def test_figures_of_a_sweep_without_trials_are_few(tmp_path: Path) -> None:
    store = write_sweep(tmp_path, finished=0)
    paths = write_figures(store)
    assert [Path(path).name for path in paths] == ["frontier.svg", "frontier.png"]


def test_it_is_written_when_something_changed_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_sweep(tmp_path, finished=2)
    times: list[float] = []
    said: list[str] = []

    def counted(sweep: SweepStore, memory: Any) -> None:
        times.append(time.monotonic())
        sweep.write_file("report.html", b"a report")

    monkeypatch.setattr(write, "write_report", counted)
    with LiveReport(store, said.append, seconds=0.5) as live:
        assert not (tmp_path / "demo" / "report.html").exists()
        live.changed()
        until((tmp_path / "demo" / "report.html").exists)
        for _ in range(5):
            live.changed()
        until(lambda: len(times) == 2)
        assert live.problem is None
    assert times[1] - times[0] >= 0.5
    assert len(times) == 2, "nothing changed since, and it is over"


def test_a_report_that_cannot_be_written_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, said, full = [0], [], threading.Event()
    full.set()

    def broken(store: SweepStore, memory: Any) -> Any:
        tries[0] += 1
        if full.is_set():
            raise StorageError("the disk is full")

    monkeypatch.setattr(write, "write_report", broken)
    with LiveReport(write_sweep(tmp_path, finished=1), said.append, seconds=0.01) as live:
        for count in (1, 2):
            live.changed()
            until(lambda count=count: tries[0] >= count)
        until(lambda: live.problem == "StorageError: the disk is full")
        full.clear()
        live.changed()
        until(lambda: live.problem is None)
    assert said == [
        "warning: the live report cannot be written, the sweep goes on: StorageError: the disk is full",
        "the live report is written again",
    ]
