"""What is said when a sweep is stopped."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.execution.sweep import _interrupted
from orchestrator.plan import make_plan
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec

SPEC = """
name: stopped
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {range: [0.2, 1.0]}}
methods: [frontier: {points: 2}]
"""


@pytest.mark.parametrize(
    ("search", "finished", "said", "outcome"),
    [
        ("", False, "with 1 of 1 trials unfinished; `cdsweep resume {url}` finishes them", "stopped"),
        ("", True, "with all trials done; `cdsweep resume {url}` reports them", "ended"),
        (
            "search: {kind: certified, tolerance: 0.01}\n",
            True,
            "with its search unfinished; `cdsweep resume {url}` goes on",
            "stopped",
        ),
    ],
)
def test_what_is_left_to_do_is_told(
    tmp_path: Path, search: str, finished: bool, said: str, outcome: str
) -> None:
    spec = parse_spec(SPEC + search)
    plan = make_plan(spec)
    store = SweepStore(str(tmp_path), spec.name)
    store.create(dump_spec(spec), plan.to_json(), {})
    done = {plan.trials[0].trial_id} if finished else set[str]()
    held: Any = SimpleNamespace(store=store, lost=None, overrun=False, outcome=None)
    store.finished = lambda: done  # type: ignore[method-assign, assignment, return-value] # as of rows
    assert str(_interrupted(held)) == f"stopped {said.format(url=store.url())}"
    assert held.outcome == outcome
