"""What a run says of its trials: how each ended, with the reason; and what Ray Tune says stays off stdout."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.progress_reporter import TrialProgressCallback
from rich.console import Console
from support.searched import GRID, spec_of

from orchestrator.execution.handout import Handout
from orchestrator.execution.progress import Display, Progress, Silent, Watcher
from orchestrator.execution.trials.attempts import Attempts
from orchestrator.plan import make_plan
from orchestrator.results.store import SweepStore
from orchestrator.search.base import Question, SearchContext
from orchestrator.search.grid import GridSearch
from trainers.config import BaselineStatistics


class Ended:
    """Stands in for a trial that ended without a report."""

    last_result: dict[str, str] = {}  # noqa: RUF012 - Tune's own is a mapping too


@pytest.mark.parametrize(("callback", "prints"), [(TrialProgressCallback, True), (Silent, False)])
def test_a_trial_without_reports_ends_in_silence(
    callback: type[TrialProgressCallback], prints: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    callback().on_trial_complete(1, [], Ended())
    captured = capsys.readouterr()
    assert bool(captured.out or captured.err) == prints


ENDS: list[tuple[dict[str, Any] | None, str]] = [
    ({"status": "succeeded", "error": None}, "succeeded"),
    ({"status": "failed", "error": "diverged at step 7"}, "failed"),
    ({"status": "infeasible", "error": "constraint 'near' stayed violated"}, "infeasible"),
    (None, "running"),
]


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize(("row", "status"), ENDS)
def test_a_trial_is_announced_as_what_its_row_says(
    row: dict[str, Any] | None, status: str, interactive: bool
) -> None:
    plan = make_plan(spec_of(GRID))
    trial_id = plan.trials[0].trial_id
    progress = Progress(plan, frozenset())
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=interactive, force_interactive=interactive, width=400, highlight=False
    )
    with Display(console, progress, 1) as display:
        display.changed(progress.update(trial_id, "running", {"step": 3, "kl": 0.5}))
        display.ended(trial_id, row)
        display.ended(trial_id, row)
    lines = [line for line in out.getvalue().splitlines() if f"{trial_id}  {status}" in line]
    missed = status in ("failed", "infeasible")
    assert len(lines) == (1 if missed or not interactive else 0), (
        "once, and above a live table only what went wrong"
    )
    if row is not None and missed:
        assert row["error"] in lines[0]
    assert len(progress.details(1)["running"]) == (1 if row is None else 0)
    assert progress.ended() == (0 if row is None else 1)


def test_a_trial_that_answers_has_ended_and_ends_no_second_time() -> None:
    plan = make_plan(spec_of(GRID))
    trial_id = plan.trials[0].trial_id
    progress = Progress(plan, frozenset({trial_id}))  # by a driver before
    out = io.StringIO()
    with Display(Console(file=out, width=400, highlight=False), progress, 1) as display:
        progress.asks(trial_id, "asked for right 0.5")
        display.changed(progress.update(trial_id, "running"))
        [running] = progress.heartbeat()
        assert (running["trial_id"], running["label"]) == (trial_id, "asked for right 0.5")
        assert progress.ended() == 1
        lost = progress.update(trial_id, "retrying")
        lost.trouble = "its process or node was lost"
        display.changed(lost)
        progress.asks(trial_id, None)
        display.ended(trial_id, {"status": "succeeded", "error": None})
    assert not progress.heartbeat()
    assert progress.ended() == 1
    [line, *_] = out.getvalue().splitlines()
    assert "retrying" in line
    assert "asked for right 0.5" in line


def test_a_trial_that_could_not_answer_has_not_failed() -> None:
    plan = make_plan(spec_of(GRID))
    trial_id = plan.trials[0].trial_id
    progress, shown = Progress(plan, frozenset({trial_id})), list[str]()
    progress.asks(trial_id, "asked for right 0.5")

    class Gone:
        config = {"trial_id": trial_id}  # noqa: RUF012 - Tune's own is a mapping too

    watcher = Watcher(
        progress,
        Attempts(plan.resources.retries),
        None,  # type: ignore[arg-type]  # room is looked for while trials run
        lambda trial: shown.append(trial.state),
        lambda name, *_: progress.asks(name, None),
    )
    watcher.on_trial_error(1, [], Gone())
    assert shown == ["succeeded"]
    assert progress.ended() == 1


@pytest.mark.parametrize("by", ["error", "end"])
def test_a_trial_that_was_asked_when_the_sweep_is_stopped_has_succeeded_as_before(
    by: str, tmp_path: Path
) -> None:
    """Its question is put again when the sweep is resumed: nothing is said of it now."""
    plan = make_plan(spec_of(GRID))
    trial, shown = plan.trials[0], list[str]()
    progress = Progress(plan, frozenset({trial.trial_id}))
    store = SweepStore(str(tmp_path), "stopped")
    driver: Any = SimpleNamespace(store=store, stop=SimpleNamespace(wanted=lambda: True))
    unused: Any = None
    attempts, baseline = Attempts(plan.resources.retries), BaselineStatistics(rewards={}, samples=None)
    search = GridSearch(SearchContext(spec=spec_of(GRID), plan=plan, baseline=baseline))
    handout = Handout(plan, driver, baseline, search, gauges=unused, attempts=attempts)
    handout.shown(progress, unused, unused, "")
    question = Question(trial_id=trial.trial_id, config=trial.config, thresholds={"right": 0.5})
    handout._asked[trial.trial_id] = question
    progress.asks(trial.trial_id, "asked for right 0.5")
    progress.update(trial.trial_id, "running")

    class Gone:
        config = {"trial_id": trial.trial_id}  # noqa: RUF012 - Tune's own is a mapping too

    watcher = Watcher(progress, attempts, unused, lambda trial: shown.append(trial.state), handout.give_up)
    if by == "error":
        watcher.on_trial_error(1, [], Gone())
        assert shown == ["succeeded"]
    else:
        handout.ended(question)
    assert not progress.heartbeat()
    assert progress.ended() == 1
    assert progress.update(trial.trial_id, "running").line().count("asked for") == 0
